"""Which of many instances a request goes to: one that serves its model, is in, and has the least to do. No network.

Two are drawn and the one with fewer open requests is taken, which is as good as looking at all and costs the same for ten as for
ten thousand. What follows in a conversation goes where it began, for its prompt is warm there.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from ...model_names import ModelName
from ..domain.about import MemberInfo
from ..domain.types import Known

# Conversations that are remembered; and by how many open requests their instance may be busier than another one.
_CONVERSATIONS, _SLACK = 20_000, 4


@dataclass(eq=False)
class Member:
    """An instance of the fleet, and what has come of it. `out` is why nothing goes there, empty while it is in."""

    known: Known
    open: int = 0
    answered: int = 0
    failed: int = 0
    out: str = ""
    serves: frozenset[str] = field(default_factory=frozenset)


class Fleet:
    """The members. For one event loop."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._members: dict[str, Member] = {}
        self._by_model: dict[str, list[Member]] = {}  # those that are in
        self._conversations: OrderedDict[int, str] = OrderedDict()
        self._news = asyncio.Event()
        self._chance = chance or random.Random()

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def get(self, instance_id: str) -> Member | None:
        return self._members.get(instance_id)

    def update(self, known: Sequence[Known]) -> tuple[list[Member], list[Member]]:
        """Make these the instances there are; those that are new, or elsewhere than before, and those that are gone."""
        fresh, gone, there = [], [], {each.instance_id: each for each in known}
        for instance_id in [name for name in self._members if name not in there]:
            gone.append(self._members.pop(instance_id))
        for instance_id, each in there.items():
            member = self._members.get(instance_id)
            if member is not None and member.known.url == each.url:
                if member.known != each:
                    member.known, member.serves = each, _served(each.models)
                continue
            if member is not None:
                gone.append(member)
            made = Member(each, serves=_served(each.models))
            self._members[instance_id] = made
            fresh.append(made)
        self._sort()
        return fresh, gone

    def take_out(self, member: Member, why: str) -> None:
        """Nothing goes there until it is back."""
        member.out = why
        self._sort()

    def take_in(self, member: Member) -> None:
        member.out = ""
        self._sort()

    def _sort(self) -> None:
        self._by_model = {}
        for member in self._members.values():
            if not member.out:
                for name in member.serves:
                    self._by_model.setdefault(name, []).append(member)
        news, self._news = self._news, asyncio.Event()
        news.set()

    def serving(self, model: str) -> Sequence[Member]:
        """The members that are in and serve `model`, all of them where it is empty."""
        if not model:
            return [member for member in self._members.values() if not member.out]
        return self._by_model.get(_name(model), ())

    def knows(self, model: str) -> bool:
        """Whether any member serves `model`, in or out."""
        name = _name(model)
        return any(name in member.serves for member in self._members.values())

    def models(self) -> list[str]:
        """What is served, once each."""
        found = {_name(model): model for member in self._members.values() for model in member.known.models}
        return sorted(found.values())

    def choose(self, model: str, conversation: int | None = None, without: Collection[Member] = ()) -> Member | None:
        """The member for a request for `model`, one of those `without` never; None where there is none now."""
        serving = self.serving(model)
        chosen = self._drawn(serving, without)
        if conversation is None or chosen is None:
            return chosen
        before = self._members.get(self._conversations.get(conversation, ""))
        if (
            before is not None
            and before is not chosen
            and before not in without
            and not before.out
            and (not model or _name(model) in before.serves)
            and before.open <= chosen.open + _SLACK
        ):
            chosen = before
        self._conversations[conversation] = chosen.known.instance_id
        self._conversations.move_to_end(conversation)
        if len(self._conversations) > _CONVERSATIONS:
            self._conversations.popitem(last=False)
        return chosen

    def _drawn(self, serving: Sequence[Member], without: Collection[Member]) -> Member | None:
        if without:
            serving = [member for member in serving if member not in without]
        if len(serving) < 2:
            return serving[0] if serving else None
        first = int(self._chance.random() * len(serving))
        second = int(self._chance.random() * (len(serving) - 1))
        one, other = serving[first], serving[second + (second >= first)]
        return one if one.open <= other.open else other

    async def changed(self, seconds: float) -> None:
        """Wait until some member is in or out, or another, `seconds` at most."""
        news = self._news
        try:
            await asyncio.wait_for(news.wait(), seconds)
        except asyncio.TimeoutError:
            return

    def table(self) -> list[MemberInfo]:
        """The members as people look at them."""
        return [
            MemberInfo(
                **vars(each.known), state="out" if each.out else "in", why=each.out,
                open=each.open, answered=each.answered, failed=each.failed,
            )
            for each in self._members.values()
        ]  # fmt: skip


def _name(model: str) -> str:
    parsed = ModelName.parse(model)
    return parsed.full if parsed else model


def _served(models: Sequence[str]) -> frozenset[str]:
    return frozenset(map(_name, models))
