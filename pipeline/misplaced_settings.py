"""What an error says of a setting that was given where it does not stand: in which part it does.

A *part* is a group of settings, by its name: of the node ("timing"), or of an engine ("mooncake"); "" is what stands in
no group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, TypeVar

from embridge.allocator.settings import settings_of

T = TypeVar("T")


def unknown_setting(part: str, name: str, known: Iterable[str], parts: Mapping[str, Any]) -> str:
    """That a part has no such setting; which one has, or else which settings it has.

    `parts`: the class of each. It is for values that come by name: of a file, or in a mapping.
    """
    full = f"{part}.{name}" if part else name
    for other, kind in parts.items():
        if other != part and name in settings_of(kind):
            if not other:
                return f"{full}: {name} is no setting of {part} but of the node; give it outside of every table"
            return f"{full}: {name} is a setting of {other}; give it there, which is [{other}] in a file"
    return f"{full}: unknown setting; known: {', '.join(known)}"


def tells_where(parts: Callable[[], Mapping[str, Any]]) -> Callable[[type[T]], type[T]]:
    """For a dataclass whose fields are the parts of the node: a setting of a part, given to the class itself, is a
    TypeError that says where to give it.
    """

    def decorated(kind: type[T]) -> type[T]:
        init = kind.__init__
        names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]

        @wraps(init)
        def __init__(self: T, *args: Any, **given: Any) -> None:
            for name in given.keys() - names:
                for part, of in parts().items():
                    if part and name in settings_of(of):
                        made = f"{of.__name__}({name}=...)"
                        place = f"{part}={made}" if part in names else f"engine_settings={{{part!r}: {made}}}"
                        raise TypeError(f"{kind.__name__}: {name} is a setting of {part}; give {place}")
            init(self, *args, **given)

        kind.__init__ = __init__  # type: ignore[method-assign, assignment]
        return kind

    return decorated
