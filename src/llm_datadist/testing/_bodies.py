"""Names of bodies, by which a fresh interpreter finds them without pickled code."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

Body: TypeAlias = "Callable[..., object] | str"
"""A top-level function, or its name as `package.module:function`."""


class BodyName(NamedTuple):
    """Location of a body: module, the module's file ("" = any), and its name there."""

    module: str
    file: str
    qualname: str

    @classmethod
    def of(cls, body: Body) -> BodyName:
        """Return the name of a body.

        Raises:
            ValueError: The body is not at the top level of a module, or the string is malformed.
        """
        if isinstance(body, str):
            module, colon, qualname = body.partition(":")
            if not (module and colon and qualname):
                raise ValueError(f"a body is named module:function, got {body!r}")
            return cls(module, "", qualname)
        qualname = body.__qualname__
        if "<" in qualname:
            raise ValueError(
                f"{qualname} is not at the top level of its module, where a peer could find it; "
                "give a function that is defined with def there"
            )
        return cls(body.__module__, str(Path(inspect.getfile(body)).resolve()), qualname)

    def load(self) -> Callable[..., object]:
        """Import the module by name, or from its file if the name leads to another file."""
        found: object = self._module()
        for part in self.qualname.split("."):
            found = getattr(found, part)
        if not callable(found):
            raise TypeError(f"{self.module}:{self.qualname} is not a function")
        return found

    def _module(self) -> ModuleType:
        loaded = sys.modules.get(self.module)
        if loaded is not None and self._has_file(getattr(loaded, "__file__", None)):
            return loaded
        try:
            spec = importlib.util.find_spec(self.module)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and self._has_file(spec.origin):
            return importlib.import_module(self.module)
        if not self.file:
            raise ModuleNotFoundError(f"no module {self.module}", name=self.module)
        name = "__peer_main__" if self.module == "__main__" else self.module
        spec = importlib.util.spec_from_file_location(name, self.file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{self.file} cannot be imported", name=name, path=self.file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    def _has_file(self, file: str | None) -> bool:
        if not self.file:
            return True
        return file is not None and str(Path(file).resolve()) == self.file
