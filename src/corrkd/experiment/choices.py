"""Networks and methods in settings: selected by name, with their options next to the name,
`{name: corrkd, width: 80}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, SerializationInfo, model_serializer, model_validator

from corrkd.errors import CorrKDError
from corrkd.methods.base import AnyMethod
from corrkd.methods.registry import method_class
from corrkd.networks.base import AnyNetwork
from corrkd.networks.registry import network_class
from corrkd.parsing import quoted
from corrkd.settings import check_keys

Tree = Mapping[str, Any]
T = TypeVar("T")
USUAL = "corrkd"  # default network and method


class Choice(BaseModel, Generic[T]):
    """A network or method, by registered name, with its options. A name alone means defaults."""

    model_config = ConfigDict(frozen=True)

    name: str
    options: BaseModel

    @classmethod
    def find(cls, name: str) -> tuple[type[T], type[BaseModel]]:
        """Return the class with this name and the class of its options. Raises CorrKDError if the
        name is unknown.
        """
        raise NotImplementedError

    @property
    def class_(self) -> type[T]:
        """Class with this name."""
        return self.find(self.name)[0]

    @classmethod
    def default(cls) -> Self:
        """Return the default choice."""
        return cls.model_validate({})

    def over(self, changes: Tree) -> Tree:
        """Return the tree of this choice, overridden by changes."""
        return over(self.model_dump(), changes)

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, value: Any) -> Any:
        tree = tree_of(value)
        if not isinstance(tree, Mapping):
            raise ValueError("expected a name, or {name: ..., and options}")
        if set(tree) == {"name", "options"} and isinstance(tree["options"], BaseModel):
            tree = {"name": tree["name"], **tree["options"].model_dump()}
        name = tree.get("name", USUAL)
        if not isinstance(name, str):
            raise ValueError(f"name: expected text (given: {quoted(name)})")
        try:
            kind = cls.find(name)[1]
        except CorrKDError as error:
            raise ValueError(str(error)) from None
        if "name" in kind.model_fields:
            raise ValueError(
                f"the key `name` chooses, so {kind.__name__} cannot have one; its author has to "
                f"rename it"
            )
        check_keys(tree, ["name", *kind.model_fields])
        return {
            "name": name,
            "options": kind.model_validate({key: tree[key] for key in tree if key != "name"}),
        }

    @model_serializer
    def _flat(self, info: SerializationInfo) -> dict[str, Any]:
        return {"name": self.name, **self.options.model_dump(mode=info.mode)}


class NetworkChoice(Choice[AnyNetwork]):
    """A network, by name, with its settings."""

    @classmethod
    def find(cls, name: str) -> tuple[type[AnyNetwork], type[BaseModel]]:
        """Return the network with this name and the class of its settings. Raises CorrKDError if
        the name is unknown.
        """
        network = network_class(name)
        return network, network.settings_type

    @staticmethod
    def needed_by(method: type[AnyMethod], usual: Tree) -> Tree:
        """Return the tree of the network that a method trains: `usual`, or the one that it needs.

        The latter has the settings of `usual` if both have settings of the same class, else its
        defaults.
        """
        name = usual.get("name", USUAL)
        if method.network in (None, name):
            return usual
        same = NetworkChoice.find(str(method.network))[1] is NetworkChoice.find(name)[1]
        return {**(usual if same else {}), "name": method.network}


class MethodChoice(Choice[AnyMethod]):
    """A method, by name, with its options."""

    @classmethod
    def find(cls, name: str) -> tuple[type[AnyMethod], type[BaseModel]]:
        """Return the method with this name and the class of its options. Raises CorrKDError if the
        name is unknown.
        """
        method = method_class(name)
        return method, method.options_type

    def check_trains(self, network: NetworkChoice) -> None:
        """Raise ValueError if the method requires another network."""
        needed = self.class_.network
        if needed not in (None, network.name):
            raise ValueError(
                f"network: method {self.name} trains network {needed} alone, not {network.name}"
            )


def tree_of(value: Any) -> Any:
    """Return a choice as keys and values, converting a plain name and models. Anything else is
    returned unchanged.
    """
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {
            key: each.model_dump() if _is_term(key, each) else each for key, each in value.items()
        }
    return value


def _is_term(key: str, value: Any) -> bool:
    return key != "options" and isinstance(value, BaseModel)


def over(below: Tree, above: Tree, usual: str | None = USUAL) -> dict[str, Any]:
    """Return the keys and values of a choice, those of `above` overriding those of `below`.

    If `above` has another name than `below`, nothing of `below` is kept; likewise for a loss term
    with another form.

    Args:
        below: keys and values.
        above: keys and values that override them.
        usual: name of `below` if it has none; None: the name of `above`.
    """
    names = above.get("name"), below.get("name", usual)
    if None not in names and names[0] != names[1]:
        return dict(above)
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _other_form(old, value):
            value = merged(old, value)
        out[key] = value
    return out


def _other_form(below: Tree, above: Tree) -> bool:
    return "form" in below and "form" in above and below["form"] != above["form"]


def merged(below: Tree, above: Tree) -> dict[str, Any]:
    """Return the nested keys and values of both trees, with `above` overriding `below`."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = (
            merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return out
