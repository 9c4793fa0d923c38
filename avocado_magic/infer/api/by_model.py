"""Several engines behind one gateway, each for a model of its own."""

from __future__ import annotations

from collections.abc import Mapping

from ...model_names import same_model
from ..service.patience import Patient
from .answers import answer_error
from .asgi import Send
from .dispatch import Request
from .lists import MergedLists
from .relay import Relay
from .routes import Access, model_in


class ByModel:
    """Answers a request with what the engine of its model answers.

    `ways` are the engines of this moment, by the names of their models; those in `asked` say what they are when they are
    asked for it, of the others only the name is told.
    """

    def __init__(self, ways: Mapping[str, Patient], asked: Mapping[str, object]) -> None:
        self._ways, self._asked = ways, asked
        self._lists = MergedLists(
            lambda: [way for name, way in ways.items() if name in asked],
            others=lambda: [n for n in ways if n not in asked],
        )

    async def __call__(self, request: Request, send: Send) -> None:
        route, dialect = request.route, request.route.dialect
        if route.lists:
            await self._lists(request, send)
            return
        if route.access is Access.ADMIN:
            said = "a cluster changes no models: that is done in its configuration"
            await answer_error(send, dialect, 501, said)
            return
        named = route.names_model or route.one_model
        model = model_in(request.path) if route.one_model else request.record.model
        way = self._way(model) if named else self._any()
        if way is None:
            served = ", ".join(self._ways) or "nothing"
            said = f"model '{model}' not found: this cluster serves {served}" if model else "model is required"
            await answer_error(send, dialect, 404 if model else 400, said)
            return
        await Relay(way)(request, send)

    def _any(self) -> Patient | None:
        return next(
            (way for name, way in self._ways.items() if name in self._asked), next(iter(self._ways.values()), None)
        )

    def _way(self, model: str) -> Patient | None:
        found = self._ways.get(model)
        return found or next((way for name, way in self._ways.items() if same_model(name, model)), None)
