"""The public interface changes on purpose only. After a change: python tests/plugin/test_public_api.py"""

from __future__ import annotations

import inspect
from pathlib import Path

import saeval
import saeval.plugin

FILE = Path(__file__).with_name("public_api.txt")


def signatures() -> str:
    """Every exported name of both faces, with the signatures of functions and of classes' public methods, inherited ones
    where no other exported class has them."""
    return "".join(f"# {face.__name__}\n{_signatures(face)}\n" for face in (saeval, saeval.plugin))


def _signatures(face) -> str:
    lines = []
    for name in sorted(face.__all__):
        thing = getattr(face, name)
        if inspect.isfunction(thing):
            lines.append(f"{name}{inspect.signature(thing)}")
        elif inspect.isclass(thing):
            lines.append(f"class {name}({', '.join(b.__name__ for b in thing.__bases__)})")
            layers = [
                b
                for b in thing.__mro__[1:]
                if b.__module__.startswith("saeval.models") and b.__name__ not in face.__all__
            ]
            for method, value in sorted(item for layer in (thing, *layers) for item in vars(layer).items()):
                plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                if not method.startswith("_") and inspect.isfunction(plain):
                    lines.append(f"    {method}{inspect.signature(plain)}")
            fields = getattr(thing, "model_fields", None) or getattr(thing, "__dataclass_fields__", None) or {}
            lines += [f"    {field}" for field in fields]
        else:
            lines.append(name)
    return "\n".join(lines) + "\n"


def test_public_interface_is_what_the_file_says():
    assert signatures() == FILE.read_text(), (
        "the public interface changed; if on purpose: python tests/plugin/test_public_api.py"
    )


if __name__ == "__main__":
    FILE.write_text(signatures())
