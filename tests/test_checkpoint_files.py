"""Files of a checkpoint, as other users of the machine or a container meet them."""

from pathlib import Path

from beholder.checkpoint import read_checkpoint, write_manifest


def test_everyone_may_read_a_checkpoint(tiny_checkpoint: Path) -> None:
    files = [path for path in tiny_checkpoint.rglob("*") if path.is_file()]
    assert [path for path in files if path.stat().st_mode & 0o444 != 0o444] == []


def test_a_file_for_its_owner_alone_is_opened_to_readers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    weights.chmod(0o600)
    write_manifest(tmp_path, read_checkpoint(tiny_checkpoint).manifest)
    assert weights.stat().st_mode & 0o777 == 0o644
