from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corrkd.errors import CorrKDError
from corrkd.experiment.arm import resolve
from corrkd.experiment.settings import ArmSettings, Settings
from corrkd.media.extractors.prosody import Prosody
from corrkd.media.extractors.registry import extractor_class
from corrkd.methods.base import Method
from corrkd.methods.corrkd import CorrKD
from corrkd.methods.registry import BUILT_IN, method_class, method_names
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.late_fusion import LateFusionNetwork
from corrkd.networks.registry import network_class
from corrkd.targets.classes import ClassesTarget
from corrkd.targets.registry import target_class
from tests.conftest import Offer


class Mine(Method[Any]):
    """A method of another package."""


def refusal(find: Callable[[str], Any], name: str) -> str:
    """Return the line with which a name is refused."""
    with pytest.raises(CorrKDError) as caught:
        find(name)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_method_of_another_package_is_found_after_the_built_in_ones(offer: Offer) -> None:
    offer("corrkd.methods", zeta=f"{__name__}:Mine", alpha=f"{__name__}:Mine")
    assert method_names() == (*BUILT_IN, "alpha", "zeta")
    assert method_class("zeta") is Mine


def test_the_error_of_an_unknown_name_lists_those_available(offer: Offer) -> None:
    offer("corrkd.methods", mine=f"{__name__}:Mine")
    line = refusal(method_class, "mime")
    assert line.startswith("unknown method 'mime'")
    assert {*BUILT_IN, "mine"} <= set(line.rpartition("available: ")[2].split(", "))
    assert "mine" not in refusal(network_class, "mime").split("available: ")[1]  # another group


def test_a_built_in_name_cannot_be_taken_over(offer: Offer) -> None:
    offer("corrkd.methods", corrkd=f"{__name__}:Mine")
    offer("corrkd.networks", **{"late-fusion": f"{__name__}:Mine"})
    assert method_class("corrkd") is CorrKD
    assert network_class("late-fusion") is LateFusionNetwork
    assert method_names() == tuple(BUILT_IN)


@pytest.mark.parametrize("value", ["corrkd_no_such_module:Mine", f"{__name__}:NoSuchClass"])
def test_an_entry_point_that_cannot_be_loaded_is_a_one_line_error_with_its_origin(
    offer: Offer, value: str
) -> None:
    offer("corrkd.methods", mine=value)
    line = refusal(method_class, "mine")
    assert line.startswith(f"method 'mine' (entry point {value}): cannot be loaded: ")
    assert (
        value.replace(f"{__name__}:", "").removesuffix(":Mine")
        in line.rpartition("cannot be loaded: ")[2]
    )


@pytest.mark.parametrize(
    "value", ["json:loads", "fractions:Fraction", "corrkd.networks.late_fusion:LateFusionNetwork"]
)
def test_objects_that_are_no_method_are_refused(offer: Offer, value: str) -> None:
    offer("corrkd.methods", mine=value)
    assert refusal(method_class, "mine").endswith(
        f"(entry point {value}): is no subclass of corrkd.methods.base.Method"
    )


def test_two_packages_with_the_same_name_are_refused(offer: Offer) -> None:
    offer("corrkd.methods", mine=f"{__name__}:Mine")
    offer("corrkd.methods", mine="another.package:Mine")
    assert "another.package:Mine has the same name" in refusal(method_class, "mine")


def test_a_method_is_no_network(offer: Offer) -> None:
    offer("corrkd.networks", mine=f"{__name__}:Mine")
    assert refusal(network_class, "mine").endswith("is no subclass of corrkd.networks.base.Network")


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_every_built_in_name_gives_a_method_and_its_network(name: str) -> None:
    kind = method_class(name)
    assert issubclass(kind, Method)
    assert kind.network is None or network_class(kind.network).name == kind.network


class Unnamed(CorrKDNetwork):
    """Without a name: a saved model of it would be loaded as the parent class."""


class WithUnnamed(Method[Unnamed]):
    title = "With an unnamed network"
    network = "unnamed"


def test_an_unnamed_network_is_refused_before_training(offer: Offer) -> None:
    offer("corrkd.methods", mine=f"{__name__}:WithUnnamed")
    offer("corrkd.networks", unnamed=f"{__name__}:Unnamed")
    with pytest.raises(
        CorrKDError, match=r"network 'unnamed' .*: Unnamed\.name is 'corrkd'; it must be the name"
    ):
        resolve("mine", ArmSettings(), Settings())


class Graded(ClassesTarget):
    """With the kind of the built-in classes, which a card would load instead."""


class Steps(Prosody):
    """With the name of the built-in extractor."""


def test_a_class_whose_stored_name_gives_another_is_refused(offer: Offer) -> None:
    offer("corrkd.targets", graded=f"{__name__}:Graded")
    offer("corrkd.extractors", steps=f"{__name__}:Steps")
    assert "Graded.kind is 'classes'; it must be the name of" in refusal(target_class, "graded")
    with pytest.raises(CorrKDError, match=r"Steps\.name is 'prosody'; it must be the name of"):
        extractor_class("steps", "audio")


def test_an_error_of_several_lines_becomes_one(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corrkd_broken_here.py").write_text('raise ImportError("first\\n  second")\n')
    monkeypatch.syspath_prepend(tmp_path)
    offer("corrkd.methods", mine="corrkd_broken_here:Mine")
    assert refusal(method_class, "mine").endswith("ImportError: first second")


@pytest.mark.parametrize("name", ["../mine", "mine/../../x", "-mine", "con", ".mine"])
def test_a_name_that_no_folder_may_have_is_refused(offer: Offer, name: str) -> None:
    offer("corrkd.methods", **{name: f"{__name__}:Mine"})
    assert "a name of a folder, which" in refusal(method_class, name)
