"""Every knob of the service, typed. Flags win over BEHOLDER_* variables, those over the YAML file of --config.

What decides a score (weights, template, image processor) is the checkpoint's and cannot be set here; `engine_args`
takes only what changes speed and memory.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from beholder.checkpoint import Dtype
from beholder.errors import ConfigurationError
from beholder.images import ImageLimits
from beholder.model_settings import MemoryShare, ModelSettings, check_engine_args, check_own_engine_args, divide

LIMITS: Final = ImageLimits()
NEARLY: Final = 0.9
"""How alike two names must be (difflib's ratio) to be taken for one that is misspelt."""


def _split(value: object) -> object:
    """A list as one string: its entries between commas."""
    if isinstance(value, str):
        return [entry.strip() for entry in value.split(",") if entry.strip()]
    return value


def _number(value: object) -> object:
    """A variable's or a flag's digits; Literal does not read them."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """One instance a process; `load_settings` makes it from all sources."""

    model_config = SettingsConfigDict(
        env_prefix="BEHOLDER_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    checkpoint: Path
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The port to listen on; 0 takes a free one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged, to standard error."""
    log_requests: bool = True
    """One line of JSON on standard error for each request but the probes."""
    model_names: Names = ()
    """Names by which requests may ask for the checkpoint in `model`; the first is shown. None takes the folder's."""
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    """More models, by the name that requests ask for them: {NAME: {checkpoint: FOLDER, ...}}. A request that names none
    is for the first, which is `checkpoint`."""
    memory_share: MemoryShare = None
    """Part (above 0, at most 1) for `checkpoint` of the memory that vLLM would take for one model alone. Models without
    a share get equal parts of what the others leave."""

    otlp_endpoint: str | None = None
    """Where traces go, an OTLP/HTTP collector such as http://collector:4318; None makes none."""

    engine: Literal["auto", "vllm", "transformers", "fake"] = "auto"
    """auto takes vLLM where it is installed, else transformers; fake has no model and its scores mean nothing."""
    dtype: Dtype | None = None
    """float32, bfloat16 or float16; None takes the checkpoint's."""
    max_model_len: int = Field(default=8192, ge=16)
    """The most tokens of prompt, expanded images and response together; never more than the model was built for."""
    max_images: int = Field(default=4, ge=1)
    """The most images in one conversation."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """The engine's own arguments, as YAML or JSON: of vLLM those that change speed and memory, such as
    {gpu_memory_utilization: 0.8, tensor_parallel_size: 2}; of transformers max_batch_tokens, patience_s and
    image_cache_bytes. What is unknown is refused with the list."""
    engine_stall_s: float = Field(default=600, ge=0)
    """Seconds for which vLLM may have samples and finish no step of their computation: then it hangs, and is ended, and
    the process with it. 0 waits for ever."""
    verify_files: bool = True
    """Compare every file with its recorded sha256 before the engine loads it."""

    policy_template: str = "chatml"
    """What templated strings of trainers are in: chatml, llama-3, gemma, mistral, plain (no template), or the path of
    a Jinja chat template."""
    overlong: Literal["refuse", "truncate"] = "refuse"
    """truncate cuts the beginning of the longest text before the response, never the response, and says so."""

    api_keys: Secrets = ()
    """Accepted keys; with none here and no file everybody is let in. A process list shows flags: prefer the file."""
    api_keys_file: Path | None = None
    """Accepted keys, one a line; read again when it changes."""
    metrics_need_key: bool = False
    """Ask for a key on /metrics too."""
    max_concurrent_per_key: int | None = Field(default=None, ge=1)
    """The most requests in flight with one key; None sets no limit."""
    shed_status: Annotated[Literal[503, 429], BeforeValidator(_number)] = 503
    """The HTTP status that overload is answered with; many clients give up on a 4xx."""

    image_store: Path | None = None
    """A folder, which replicas may share, for images sent ahead; None keeps them in memory."""
    image_store_bytes: int = Field(default=4 * 2**30, ge=1)
    """The most bytes of images sent ahead; above it new ones are refused, and none is dropped before its time."""
    image_ttl_s: float = Field(default=6 * 3600, gt=0)
    """Seconds that an image sent ahead is kept after it was last sent."""
    image_url_hosts: Names = ()
    """Hosts that images may be fetched from (`*.example.com` for all below); none turns {"url": ..} off."""
    image_url_http: bool = False
    """Fetch images from http:// URLs too."""
    image_url_timeout_s: float = Field(default=10, gt=0)
    """Seconds for fetching one image URL, its redirects included."""
    image_url_redirects: int = Field(default=3, ge=0)
    """The most redirects that are followed for one image URL."""

    max_image_bytes: int = Field(default=LIMITS.max_bytes, ge=1)
    """The largest image file that is accepted, in bytes."""
    max_image_pixels: int = Field(default=LIMITS.max_pixels, ge=1)
    """The largest image that is accepted, in pixels (width times height)."""
    max_image_aspect: float = Field(default=LIMITS.max_aspect, ge=1)
    """The greatest ratio of an image's longer side to its shorter one that is accepted."""
    max_image_frames: int = Field(default=LIMITS.max_frames, ge=1)
    """The most frames of an animated image that is accepted; only the first is scored."""
    max_decoded_pixels: int = Field(default=256_000_000, ge=1)
    """The most pixels of decoded images in memory, for all requests and kept for later ones; each takes 4 bytes."""
    max_body_bytes: int = Field(default=128 * 2**20, ge=1)
    """The largest request body that is accepted, in bytes."""
    max_body_bytes_in_flight: int = Field(default=2 * 2**30, ge=1)
    """The most bytes of all request bodies in memory, and as many again of images fetched from URLs; above it requests
    are refused with `overloaded`."""
    body_timeout_s: float = Field(default=60, gt=0)
    """Seconds for a request's body to arrive after its headers, for the unread rest of a body after the answer, and for
    a client to accept more of an answer."""
    max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    """The most bytes of a request's URL and headers."""
    header_timeout_s: float = Field(default=10, gt=0)
    """Seconds from a request's first byte, or from the connection's beginning, to the end of its headers."""

    score_cache_bytes: int = Field(default=64 * 2**20, ge=0)
    """Bytes of memory for scores, so that a sample that is sent again gets the identical one; 0 keeps none."""
    max_in_flight: int = Field(default=4096, ge=1)
    """The most samples accepted and not yet answered; above it requests are refused with `overloaded`."""
    request_deadline_s: float = Field(default=300, gt=0)
    """Seconds after which a request is answered with `deadline-exceeded`, and what it queued is cancelled."""
    drain_delay_s: float = Field(default=5, ge=0)
    """Seconds for which new requests are still accepted after SIGTERM, until load balancers have seen /readyz."""
    drain_timeout_s: float = Field(default=120, ge=1)
    """Seconds that accepted requests may take to finish after that."""

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, self.max_image_aspect, self.max_image_frames)

    @property
    def names(self) -> tuple[str, ...]:
        """What `model` may be in a request for the first model."""
        return self.model_names or tuple(dict.fromkeys((self.checkpoint.resolve().name, str(self.checkpoint))))

    def each(self) -> "tuple[Settings, ...]":
        """Settings of one model each, with its own in place of the service's; the first is that of `checkpoint`."""
        if not self.models:
            return (self,)
        first, *others = divide(self._shares).values()
        more = (
            self.model_copy(
                update={
                    "checkpoint": model.checkpoint,
                    "model_names": (name,),
                    "models": {},
                    "dtype": model.dtype or self.dtype,
                    "engine_args": self.engine_args | model.engine_args,
                    "memory_share": share,
                }
            )
            for (name, model), share in zip(self.models.items(), others, strict=True)
        )
        return (self.model_copy(update={"models": {}, "memory_share": first}), *more)

    @field_validator("port", mode="before")
    @classmethod
    def _refuse_service_link(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError(f"{value} is a Kubernetes service link: set enableServiceLinks to false in the pod")
        return value

    @property
    def _shares(self) -> dict[str, float | None]:
        """As they are set."""
        return {self.names[0]: self.memory_share} | {name: model.memory_share for name, model in self.models.items()}

    @model_validator(mode="after")
    def _check_engine_args(self) -> Self:
        check_engine_args("engine_args", self.engine_args, self.chosen_engine)
        for name, model in self.models.items():
            check_own_engine_args(name, model, self.chosen_engine)
        return self

    @model_validator(mode="after")
    def _check_body_bytes(self) -> Self:
        if self.max_body_bytes > self.max_body_bytes_in_flight:
            raise ValueError("max_body_bytes is more than max_body_bytes_in_flight: a body of that size never gets in")
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if taken := self.models.keys() & set(self.names):
            raise ValueError(f"models: {', '.join(taken)} names the first model already: choose another")
        if self.chosen_engine != "vllm" and any(share is not None for share in self._shares.values()):
            raise ValueError(f"memory_share: {self.chosen_engine} takes the memory that it needs: leave it out")
        divide(self._shares)
        return self

    @property
    def chosen_engine(self) -> str:
        """The engine that `auto` stands for on this machine, or the one that is set."""
        if self.engine != "auto":
            return self.engine
        return "vllm" if find_spec("vllm") else "transformers"


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Settings from `flags` (those given), the environment and the YAML file. Raises ConfigurationError."""
    file_values = _read_config(config) if config else {}

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, file_values)

    try:
        return Sourced(**flags)
    except ValidationError as error:
        raise ConfigurationError(f"settings: {'; '.join(map(_problem, error.errors()))}") from None
    except ValueError as error:
        # pydantic-settings wraps a BEHOLDER_ENGINE_ARGS that is not JSON in an error of its own.
        raise ConfigurationError(f"settings: {error}: {error.__cause__}") from None


def misspelt_variables(names: Iterable[str]) -> list[str]:
    """A line for each of the environment's `names` that is nearly a setting's, and is not read. A cluster sets
    BEHOLDER_ variables of its own, so what is unknown cannot be refused."""
    known = [f"BEHOLDER_{name.upper()}" for name in Settings.model_fields]
    unknown = [name for name in names if name.startswith("BEHOLDER_") and name not in known]
    near = [(name, get_close_matches(name, known, 1, NEARLY)) for name in sorted(unknown)]
    return [f"{name} is no setting and not read: {meant[0]} is one" for name, meant in near if meant]


def _problem(error: ErrorDetails) -> str:
    """What pydantic found, in a line: its place, where it is of one setting, and what is wrong there."""
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{place} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise ConfigurationError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected a map of settings such as `port: 8000`")
    return values
