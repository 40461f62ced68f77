"""docker/compose.yaml: what it mounts exists, its images are pinned, its ports stay on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = sorted(COMPOSE["services"])


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists(name: str) -> None:
    assert [source for source in _bound(name) if not (ROOT / source).exists()] == []


@pytest.mark.parametrize("name", SERVICES)
def test_every_name_is_of_a_volume_that_is_declared(name: str) -> None:
    """Compose takes a short mount for a path only where it begins with a dot, slash or tilde."""
    names = [source for source in _short(name) if not source.startswith((".", "/", "~"))]
    assert set(names) <= set(COMPOSE["volumes"])


def test_the_checkpoint_is_a_folder_whatever_its_path_begins_with() -> None:
    (mount,) = COMPOSE["services"]["beholder"]["volumes"]
    assert mount["type"] == "bind"
    assert mount["source"].startswith("${CHECKPOINT:?")
    assert mount["read_only"]


def _short(name: str) -> list[str]:
    """What stands before the colon of the mounts in the short form."""
    return [volume.split(":")[0] for volume in COMPOSE["services"][name]["volumes"] if isinstance(volume, str)]


def _bound(name: str) -> list[str]:
    return [source for source in _short(name) if source.startswith("./")]


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_exact_tags(name: str) -> None:
    repository, _, tag = COMPOSE["services"][name]["image"].partition(":")
    assert repository
    assert tag not in ("", "latest")


@pytest.mark.parametrize("name", SERVICES)
def test_ports_stay_on_loopback(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"][name]["ports"])


def test_prometheus_scrapes_the_service_and_reads_the_rules() -> None:
    config = yaml.safe_load((ROOT / "docker" / "prometheus.yaml").read_text())
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["beholder:8000"]
    mounts = [volume.split(":")[1] for volume in COMPOSE["services"]["prometheus"]["volumes"]]
    assert set(config["rule_files"]) <= set(mounts)
