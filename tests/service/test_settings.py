"""Where settings come from, and what they refuse."""

from pathlib import Path

import pytest

from beholder.errors import ConfigurationError
from beholder.images import ImageLimits
from beholder.settings import load_settings, misspelt_variables


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "beholder.yaml"
    path.write_text("checkpoint: from-file\nport: 1\nhost: from-file\nmax_images: 2\nengine_args: {max_num_seqs: 8}\n")
    return path


def test_flags_win_over_variables_and_those_over_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHOLDER_PORT", "2")
    monkeypatch.setenv("BEHOLDER_HOST", "from-variable")
    settings = load_settings({"port": "3"}, config)
    assert (settings.port, settings.host, settings.max_images) == (3, "from-variable", 2)
    assert settings.engine_args == {"max_num_seqs": 8}
    assert settings.checkpoint == Path("from-file")


def test_engine_args_come_from_a_variable_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHOLDER_ENGINE_ARGS", '{"tensor_parallel_size": 2}')
    assert load_settings({"checkpoint": "x"}).engine_args == {"tensor_parallel_size": 2}


@pytest.mark.parametrize(
    "name", ["runner", "convert", "task", "hf_overrides", "trust_remote_code", "dtype", "mm_processor_kwargs", "typo"]
)
def test_engine_args_that_decide_a_score_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"engine_args: .*{name} cannot be set"):
        load_settings({"checkpoint": "x", "engine_args": {name: 1}})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "checkpoint is missing"),
        ({"checkpoint": "x", "port": "many"}, "port: .*integer"),
        ({"checkpoint": "x", "port": "70000"}, "port: .*less than or equal to 65535"),
        ({"checkpoint": "x", "engine": "tgi"}, "engine: .*'auto', 'vllm'"),
        ({"checkpoint": "x", "shed_status": "500"}, "shed_status: .*503 or 429"),
        ({"checkpoint": "x", "max_body_bytes": 2, "max_body_bytes_in_flight": 1}, "of that size never gets in"),
        ({"checkpoint": "x", "prot": 1}, "prot: Extra inputs are not permitted"),
        ({"checkpoint": "x", "port": "tcp://10.0.0.1:8000"}, "service link: set enableServiceLinks"),
    ],
)
def test_wrong_values_are_named(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_settings(flags)


def test_a_quantization_that_checkpoints_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="engine_args: quantization is 'awq'; allowed are fp8, "):
        load_settings({"checkpoint": "x", "engine": "vllm", "engine_args": {"quantization": "awq"}})
    settings = load_settings({"checkpoint": "x", "engine": "vllm", "engine_args": {"quantization": "fp8_per_channel"}})
    assert settings.engine_args == {"quantization": "fp8_per_channel"}


def test_lists_and_statuses_come_from_variables_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHOLDER_IMAGE_URL_HOSTS", "a.example, *.b.example")
    settings = load_settings({"checkpoint": "runs/reward/", "shed_status": "429", "model_names": "one"})
    assert settings.image_url_hosts == ("a.example", "*.b.example")
    assert (settings.shed_status, settings.names) == (429, ("one",))
    assert load_settings({"checkpoint": "runs/reward/"}).names == ("reward", "runs/reward")


def test_models_come_from_file_variable_and_flags_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "beholder.yaml"
    config.write_text("models: {proxy: {checkpoint: from-file, memory_share: 0.25}}\nengine_args: {block_size: 64}\n")
    monkeypatch.setenv("BEHOLDER_MODELS", '{"old": {"checkpoint": "runs/old", "engine_args": {"max_num_seqs": 8}}}')
    flags = {"checkpoint": "runs/new", "engine": "vllm", "models": {"proxy": {"checkpoint": "from-flag"}}}
    first, *others = load_settings(flags, config).each()
    assert (first.names, first.memory_share, first.models) == (("new", "runs/new"), 0.375, {})
    proxy, old = sorted(others, key=lambda settings: settings.names, reverse=True)
    assert (proxy.names, proxy.checkpoint, proxy.memory_share) == (("proxy",), Path("from-flag"), 0.25)
    assert (old.names, old.checkpoint, old.memory_share) == (("old",), Path("runs/old"), 0.375)
    assert (proxy.engine_args, old.engine_args) == ({"block_size": 64}, {"block_size": 64, "max_num_seqs": 8})


def test_one_model_takes_all_memory() -> None:
    (only,) = load_settings({"checkpoint": "x"}).each()
    assert only.memory_share is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"memory_share": 0.5, "models": {"b": {"checkpoint": "b", "memory_share": 0.6}}},
            "add up to 1.1 .x 0.5, b 0.6.",
        ),
        ({"memory_share": 1, "models": {"b": {"checkpoint": "b"}}}, "add up to 1 .x 1.0, b none.: lower them"),
        ({"memory_share": 0}, "memory_share: .*greater than 0"),
        ({"models": {"x": {"checkpoint": "b"}}}, "models: x names the first model already"),
        ({"models": {"b": {}}}, "models.b.checkpoint is missing"),
        ({"models": {"b": {"checkpoint": "b", "engine_args": {"runner": 1}}}}, "models.b.engine_args: runner cannot"),
        (
            {"models": {"b": {"checkpoint": "b", "engine_args": {"gpu_memory_utilization": 0.5}}}},
            "models.b.engine_args: gpu_memory_utilization is divided",
        ),
        ({"memory_share": 0.5, "engine": "fake"}, "memory_share: fake takes the memory that it needs"),
    ],
)
def test_models_that_cannot_be_served_together_are_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_settings({"checkpoint": "x", "engine": "vllm", **flags})


def test_shares_may_add_up_to_one_in_any_binary_fractions() -> None:
    models = {name: {"checkpoint": name, "memory_share": 0.1} for name in "bcdefgh"}
    shares = [
        each.memory_share for each in load_settings({"checkpoint": "x", "memory_share": 0.3, "models": models}).each()
    ]
    assert shares == [0.3, *[0.1] * 7]


def test_a_variable_that_is_not_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHOLDER_ENGINE_ARGS", "{")
    with pytest.raises(ConfigurationError, match="engine_args"):
        load_settings({"checkpoint": "x"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a list", "expected a map"),
        (b"a: [", "expected"),
        (b"a: \xff", "utf-8"),
        (b"a: 2026-02-30", "day"),
        (None, "No"),
    ],
)
def test_a_broken_file_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_settings({}, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_image_limits_are_the_defaults_of_training() -> None:
    assert load_settings({"checkpoint": "x"}).image_limits == ImageLimits()


def test_misspelt_variables_are_told() -> None:
    names = [
        "BEHOLDER_API_KEY",
        "BEHOLDER_MAX_INFLIGHT",
        "BEHOLDER_HOST",
        "BEHOLDER_URL",
        "BEHOLDER_PORT_8000_TCP_ADDR",
    ]
    first, second = misspelt_variables([*names, "HOME"])
    assert first == "BEHOLDER_API_KEY is no setting and not read: BEHOLDER_API_KEYS is one"
    assert second.endswith("BEHOLDER_MAX_IN_FLIGHT is one")
