"""Parameters of a strategy: typed by their default, checked when they are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from algorithms.errors import ParameterError

Value = int | float | bool | str


class Param:
    """A parameter of an `Algorithm`, declared in the class body: ``length = Param(14, low=2)``.

    On an instance it reads as its value. A whole number is taken for a float parameter, never a
    float for a whole one.

    Parameters
    ----------
    default : int, float, bool or str
        Its type is the parameter's type.
    low, high : number, optional
        The least and the greatest value taken, both inclusive.
    choices : sequence, optional
        All values taken.
    about : str
        One line for listings.
    """

    def __init__(
        self,
        default: Value,
        *,
        low: float | None = None,
        high: float | None = None,
        choices: Sequence[Value] | None = None,
        about: str = "",
    ) -> None:
        self.name = "?"
        self.default = default
        self.type: type[Value] = type(default)
        if self.type not in (int, float, bool, str):
            raise ParameterError(
                f"a parameter with the default {default!r}",
                cure="give an int, a float, a bool or a str: it is the parameter's type",
            )
        self.low = low
        self.high = high
        self.choices = None if choices is None else tuple(choices)
        self.about = about
        self.check(default)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Param: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Any: ...

    def __get__(self, instance: object | None, owner: type) -> Any:
        # An instance keeps its value in its own __dict__, which Python looks into first.
        return self if instance is None else self.default

    def check(self, value: object) -> Value:
        """Return `value` as this parameter's type.

        Raises
        ------
        ParameterError
            Another type, or outside what is taken.
        """
        kind = self.type
        if isinstance(value, np.generic):
            value = value.item()  # from a grid made with numpy
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._refusal(value, f"takes {_article(kind.__name__)}")
        if isinstance(value, float) and math.isnan(value):
            raise self._refusal(value, "takes a number")
        if self.low is not None and not isinstance(value, str) and value < self.low:
            raise self._refusal(value, f"is at least {self.low:g}")
        if self.high is not None and not isinstance(value, str) and value > self.high:
            raise self._refusal(value, f"is at most {self.high:g}")
        if self.choices is not None and value not in self.choices:
            raise self._refusal(value, "is one of " + ", ".join(map(repr, self.choices)))
        return value

    def read(self, text: str) -> Value:
        """Return what a command line says: ``"14"`` for a whole number."""
        if self.type is bool:
            word = text.strip().lower()
            if word in ("true", "yes", "1", "on"):
                return True
            if word in ("false", "no", "0", "off"):
                return False
            raise self._refusal(text, "takes true or false")
        try:
            value = self.type(text)
        except ValueError:
            raise self._refusal(text, f"takes {_article(self.type.__name__)}") from None
        return self.check(value)

    def __repr__(self) -> str:
        return f"Param({self.default!r})"

    def _refusal(self, value: object, rule: str) -> ParameterError:
        return ParameterError(
            f"{self.name} {rule}, not {value!r}", cure=f"the default is {self.default!r}"
        )


def _article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word
