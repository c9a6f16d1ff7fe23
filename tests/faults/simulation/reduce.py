"""A recipe that breaks a promise, made as small as possible."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import evolve, fields

from .course import Outcome, simulate
from .recipe import Event, Recipe, Settings

__all__ = ["reduce_recipe"]


def reduce_recipe(recipe: Recipe, said: Callable[[str], object], most: int = 600) -> Outcome:
    """
    Make a failing recipe smaller: fewer events, ordinary settings, smaller numbers.

    @param said: is told how far it is.
    @param most: how many runs to spend.
    @return: the smallest recipe found that breaks the same promise, and how.
    """
    return _Reducer(recipe, said, most).reduce()


def _kind(violation: str) -> str:
    """What is broken, without the numbers."""
    return re.sub(r"\b[0-9a-f]{8}\b|\d+", "#", violation)[:60]


class _Reducer:
    def __init__(self, recipe: Recipe, said: Callable[[str], object], most: int) -> None:
        self._best = simulate(recipe)
        self._kind = _kind(self._best.violation)
        self._said = said
        self._left = most

    def reduce(self) -> Outcome:
        if not self._best.violation:
            return self._best
        before = -1
        while before != self._left and self._left > 0:
            before = self._left
            smaller = self._drop_events() | self._ordinary_settings() | self._smaller_numbers()
            if not smaller:
                break
        return self._best

    def _try(self, recipe: Recipe) -> bool:
        """Whether a smaller recipe breaks the same promise; it is the best then."""
        if self._left <= 0:
            return False
        self._left -= 1
        outcome = simulate(recipe)
        if _kind(outcome.violation) != self._kind:
            return False
        self._best = outcome
        count = len(recipe.events)
        self._said(f"{count} events, {self._left} runs left: {outcome.violation[:80]}")
        return True

    def _drop_events(self) -> bool:
        smaller = False
        size = max(len(self._best.recipe.events) // 2, 1)
        while size:
            at = 0
            while at < len(events := self._best.recipe.events):
                if self._try(evolve(self._best.recipe, events=events[:at] + events[at + size :])):
                    smaller = True
                else:
                    at += size
            size //= 2
        return smaller

    def _ordinary_settings(self) -> bool:
        smaller = False
        ordinary = Settings()
        for attribute in fields(Settings):
            recipe = self._best.recipe
            value = getattr(ordinary, attribute.name)
            if attribute.name == "clients":
                value = recipe.settings.clients[:1]
            if getattr(recipe.settings, attribute.name) != value:
                settings = evolve(recipe.settings, **{attribute.name: value})
                smaller |= self._try(evolve(recipe, settings=settings))
        return smaller

    def _smaller_numbers(self) -> bool:
        smaller = False
        for index, event in enumerate(self._best.recipe.events):
            for key, value in event.how.items():
                if key in ("count", "seconds", "away", "up", "down") and value > 1:
                    smaller |= self._replace(index, how={**event.how, key: type(value)(1)})
        for index in range(len(self._best.recipe.events)):
            events = self._best.recipe.events
            at = round(events[index - 1].at + 0.1, 3) if index else 0.1
            if events[index].at > at + 0.2:
                shift = events[index].at - at
                earlier = [
                    evolve(event, at=round(event.at - shift, 3)) if i >= index else event
                    for i, event in enumerate(events)
                ]
                smaller |= self._try(evolve(self._best.recipe, events=earlier))
        return smaller

    def _replace(self, index: int, **changes: Any) -> bool:
        events: list[Event] = list(self._best.recipe.events)
        events[index] = evolve(events[index], **changes)
        return self._try(evolve(self._best.recipe, events=events))
