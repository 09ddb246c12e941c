"""A module of which an engine imports names that it never uses here: any name is there, and calling one says it is not.

`stub_wheels` writes this file as every module of a stub distribution. A name is a class, so that it can stand wherever
one may be needed at import: in annotations, as a base class, as an enumeration with members.
"""


class _Absent(type):
    def __getattr__(cls, name: str) -> "_Absent":
        return _absent(cls.__module__, name, f"{cls.__qualname__}.{name}")

    def __call__(cls, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{cls.__module__}.{cls.__qualname__} was called: only a stub is installed here")


def _absent(module: str, name: str, path: str) -> _Absent:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Absent(name, (), {"__module__": module, "__qualname__": path})


def __getattr__(name: str) -> _Absent:
    return _absent(__name__, name, name)
