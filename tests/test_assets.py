from __future__ import annotations

import hashlib
import sys
import threading
import time
from pathlib import Path

import pytest

import saeval.assets
from saeval import Asset, InputError, asset_path
from saeval.assets import asset_check, cache_dir

CONTENT = b"weights" * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Two installed packages: one to be assembled, one with a model folder. Returns what was asked of them."""
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    site = tmp_path / "site"
    site.mkdir()
    (site / "tiny_parts.py").write_text(
        "made = []\n"
        "def assemble(path):\n"
        "    import time\n"
        "    made.append(str(path))\n"
        "    with open(path, 'wb') as f:\n"
        "        f.write(b'weights' * 500); f.flush(); time.sleep(0.05); f.write(b'weights' * 500)\n"
    )
    (site / "tiny_folder.py").write_text(
        "from pathlib import Path\ndef get_model_path():\n    return Path(__file__).parent / 'model'\n"
    )
    (site / "model").mkdir()
    (site / "model" / "model.safetensors").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(site)
    parts = Asset("tiny-parts", "tiny_parts", "tiny.gguf", SHA, folder=False)
    folder = Asset("tiny-folder", "tiny_folder", "model.safetensors", SHA, folder=True)
    monkeypatch.setattr(saeval.assets, "_ASSETS", {a.package: a for a in (parts, folder)})
    yield site
    for name in ("tiny_parts", "tiny_folder"):
        sys.modules.pop(name, None)


def test_a_file_is_put_together_once_and_verified_once(package, monkeypatch):
    path = asset_path("package:tiny-parts")
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache_dir())
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert asset_path("package:tiny-parts") == path
    assert len(sys.modules["tiny_parts"].made) == 1


def test_several_at_once_never_see_half_a_file(package):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(asset_path("package:tiny-parts").read_bytes())) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 6


def test_a_changed_file_is_refused(package):
    path = asset_path("package:tiny-parts")
    time.sleep(0.01)
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(InputError, match=r"SHA-256 .* instead of .*delete the file"):
        asset_path("package:tiny-parts")


def test_a_model_folder_is_verified_where_it_lies(package):
    assert asset_path("package:tiny-folder") == package / "model"
    (package / "model" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match=r"SHA-256 .*install the package again"):
        asset_path("package:tiny-folder")
    (package / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="missing from the package"):
        asset_path("package:tiny-folder")


def test_a_folder_is_usable_where_the_cache_cannot_be_written(package, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "a-file" / "cache"))
    assert asset_path("package:tiny-folder") == package / "model"
    with pytest.raises(InputError, match="could not be put together"):
        asset_path("package:tiny-parts")


def test_missing_packages_and_misspelt_names_say_what_to_do(package, monkeypatch):
    (package / "tiny_parts.py").unlink()
    for ask in (asset_check, asset_path):
        with pytest.raises(InputError, match=r"tiny-parts is not installed: pip install 'saeval\[quickstart\]'"):
            ask("package:tiny-parts")
        with pytest.raises(InputError, match="did you mean package:tiny-folder"):
            ask("package:tiny-foldre")


def test_checking_imports_nothing(package):
    asset_check("package:tiny-parts")
    assert "tiny_parts" not in sys.modules


def test_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("SAEVAL_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "saeval"
