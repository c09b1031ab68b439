"""What a server is not started with: refused before it says that it is ready."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from model_server.errors import ShapePriorError
from model_server.service.server import ServeOptions, check_options


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> Path:
    """A folder with a certificate, its key, another key and a locked one."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=localhost"]
    for name, lock in (
        ("mine", ["-nodes"]),
        ("other", ["-nodes"]),
        ("locked", ["-passout", "pass:a1"]),
    ):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run([*make, *lock, *files], cwd=folder, check=True, capture_output=True)
    (folder / "text.pem").write_text("no certificate")
    return folder


@pytest.mark.parametrize(
    ("certificate", "key"),
    [("text", None), ("text", "mine"), ("mine", None), ("mine", "other"), ("locked", "locked"),
     (None, "mine"), ("mine", "gone")],
)  # fmt: skip
def test_tls_files_that_are_none_are_refused(pem: Path, certificate: str | None, key: str | None):
    files = {
        "certificate": certificate and pem / f"{certificate}.pem",
        "key": key and pem / f"{key}.key",
    }
    with pytest.raises(ShapePriorError) as caught:
        check_options(ServeOptions(**files))
    assert caught.value.code in ("bad-certificate", "no-file")


def test_tls_files_that_belong_together_are_taken(pem: Path):
    check_options(ServeOptions(certificate=pem / "mine.pem", key=pem / "mine.key"))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-sessions", "0", "--max-sessions 1 or more"),
        ("--max-sessions", "-3", "--max-sessions 1 or more"),
        ("--idle-minutes", "nan", "--idle-minutes above 0"),
        ("--idle-minutes", "inf", "--idle-minutes above 0"),
        ("--idle-minutes", "0", "--idle-minutes above 0"),
        ("--device", "magic", "auto, cpu, cuda"),
        ("--device", "cuda", "no CUDA device"),
        ("--key", "nowhere.key", "--certificate"),
    ],
)
def test_what_no_server_can_do_is_refused_before_it_is_ready(
    shape_prior, monkeypatch, option: str, value: str, said: str
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = shape_prior("serve", option, value)
    assert done.returncode == 2
    assert said in done.stderr
    assert not done.stdout
