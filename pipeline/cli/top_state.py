"""What `embridge top` shows at this moment, and what each key does to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from embridge.pipeline.inspection.picture import ORDERS, chosen

KEYS: Final = (
    ("q", "quit"),
    ("up down", "choose a request (also k j, page up, page down, home, end)"),
    ("enter", "open its story: why it waits, its phases, who has it; again, escape or left: back"),
    ("s", f"sort by the next of: {', '.join(ORDERS)}"),
    ("r", "reverse the order"),
    ("/", "filter: requests with all of these words (room, phase, path, who is waited for, why); enter keeps it"),
    ("escape", "forget the filter; go back"),
    ("n", "processes, clients, peers and quarantine of the node"),
    ("space", "hold the picture, or go on"),
    ("h ?", "these keys"),
)
PAGE: Final = 10
MOST_TYPED: Final = 60

Key = tuple[int, int]


def key_of(request: Mapping[str, Any]) -> Key:
    """(slot, epoch), which is one request's alone."""
    return int(request["slot"]), int(request["epoch"])


@dataclass(slots=True, kw_only=True)
class State:
    """One thread's. `page` is `requests`, `story`, `node` or `help`."""

    page: str = "requests"
    order: str = ORDERS[0]
    is_reversed: bool = False
    words: str = ""
    is_typing: bool = False
    is_held: bool = False
    wants_end: bool = False
    chosen: Key | None = None
    first_row: int = 0  # of the table, that is shown
    first_line: int = 0  # of a page of text, that is shown
    picture: Mapping[str, Any] | None = None
    note: str = ""  # why there is no new picture
    story: Mapping[str, Any] | None = None  # of the chosen request, as it was seen last
    rows: list[Mapping[str, Any]] = field(default_factory=list)

    def show(self, picture: Mapping[str, Any]) -> None:
        """Take a new picture, unless the old one is held."""
        if not self.is_held or self.picture is None:
            self.picture = picture
            self.arrange()

    def arrange(self) -> None:
        """Filter and sort anew. Who was chosen stays so; if it is gone, whoever stands in its place is, but for a
        story, which stays that of its request.
        """
        place = self.place
        requests = self.picture["in_flight"] if self.picture else ()
        self.rows = chosen(requests, order=self.order, is_reversed=self.is_reversed, words=self.words)
        if self.page == "story" or self.place is not None:
            return
        self._choose(place or 0)

    @property
    def place(self) -> int | None:
        """Where in the rows the chosen one stands."""
        return next((i for i, row in enumerate(self.rows) if key_of(row) == self.chosen), None)

    @property
    def request(self) -> Mapping[str, Any] | None:
        """The chosen one, if it is in flight."""
        requests = self.picture["in_flight"] if self.picture else ()
        return next((row for row in requests if key_of(row) == self.chosen), None)

    def _choose(self, place: int) -> None:
        self.chosen = key_of(self.rows[max(0, min(place, len(self.rows) - 1))]) if self.rows else None
        self.story = None

    def press(self, key: str) -> None:
        """Do what a key says; one that means nothing here does nothing."""
        if self.is_typing:
            self._type(key)
            return
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -PAGE, "page down": PAGE}
        far = {"home": -(1 << 30), "end": 1 << 30}
        if key == "q":
            self.wants_end = True
        elif key in moves or key in far:
            self._move({**moves, **far}[key])
        elif key == "enter":
            self._open()
        elif key in ("escape", "left", "backspace"):
            self._back(forgets=key == "escape")
        elif key == "n":
            self._turn_to("node")
        elif key in ("h", "?"):
            self._turn_to("help")
        elif key == " ":
            self.is_held = not self.is_held
        elif self.page == "requests":
            self._arrange_by(key)

    def _arrange_by(self, key: str) -> None:
        if key == "s":
            self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
        elif key == "r":
            self.is_reversed = not self.is_reversed
        elif key == "/":
            self.is_typing = True
        self.arrange()

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.is_typing = False
            self.words = "" if key == "escape" else self.words
        elif key in ("backspace", "delete"):
            self.words = self.words[:-1]
        elif len(key) == 1 and len(self.words) < MOST_TYPED:
            self.words += key
        self.arrange()

    def _move(self, by: int) -> None:
        if self.page == "requests":
            self._choose((self.place or 0) + by)
        else:
            self.first_line = max(0, self.first_line + by)  # the view knows how many there are

    def _open(self) -> None:
        if self.page == "story":
            self._back(forgets=False)
        elif self.page == "requests" and self.chosen is not None:
            self._turn_to("story")

    def _back(self, *, forgets: bool) -> None:
        if self.page != "requests":
            self._turn_to("requests")
            self.arrange()
        elif forgets:
            self.words = ""
            self.arrange()

    def _turn_to(self, page: str) -> None:
        self.page = "requests" if self.page == page else page
        self.first_line = 0
