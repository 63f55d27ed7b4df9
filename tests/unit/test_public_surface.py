"""What users may build on is what the packages list, no more and no less, and the reference names all of it."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import meshlib
import meshlib.integrations
import meshlib.testing

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = sorted(module.name for module in pkgutil.iter_modules(meshlib.integrations.__path__))
PUBLIC = ["meshlib", "meshlib.testing", "meshlib.integrations", *(f"meshlib.integrations.{name}" for name in ADAPTERS)]
FRAMEWORKS = (
    "aiohttp",
    "asgiref",
    "django",
    "fastapi",
    "gunicorn",
    "prometheus_client",
    "requests",
    "starlette",
    "uvicorn",
)
NAMES = [(module, name) for module in PUBLIC for name in importlib.import_module(module).__all__]


def public_names(module: ModuleType) -> set[str]:
    """Return the names that a reader takes for public: defined here or imported from our own packages."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and issubclass(type(value), type | FunctionType)  # not isinstance: it wakes up lazy objects (Django's settings)
        and value.__module__ == module.__name__
    }


def reference() -> str:
    return (ROOT / "docs" / "reference" / "api.md").read_text()


@pytest.mark.parametrize("name", PUBLIC)
def test_list_of_public_names_is_sorted_and_every_name_is_there(name):
    module = importlib.import_module(name)
    assert sorted(set(module.__all__)) == module.__all__
    assert [] == [listed for listed in module.__all__ if not hasattr(module, listed)]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "meshlib"])
def test_what_a_public_module_defines_is_listed(name):
    module = importlib.import_module(name)
    assert set() == public_names(module) - set(module.__all__)


def test_lazy_names_of_the_package_are_exactly_the_listed_ones():
    submodules = {module.name for module in pkgutil.iter_modules(meshlib.__path__)}
    lazy = {*meshlib._HOMES, "integrations"}
    assert lazy == set(meshlib.__all__)
    assert set() == {name for name in vars(meshlib) if not name.startswith("_")} - lazy - submodules - {
        "Any",
        "TYPE_CHECKING",
        "import_module",
    }


def test_type_checkers_see_the_same_names_as_programs():
    source = (ROOT / "meshlib" / "__init__.py").read_text().partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    imported = set(re.findall(r"^    +(?:from \S+ import )?(\w+),?$", source, re.MULTILINE))
    assert set(meshlib.__all__) - {"integrations"} == imported


@pytest.mark.parametrize("statement", ["import meshlib; meshlib.Mesh", "import meshlib.testing", "import meshlib.cli"])
def test_no_framework_is_needed(statement):
    """An adapter alone imports its framework; what is installed must not matter."""
    code = f"import sys; {statement}; print([name for name in {FRAMEWORKS!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[".".join(pair) for pair in NAMES])
def test_public_things_say_what_they_are(module, name):
    """Every public class and function has a docstring of its own, and so has every public method of a class."""
    value = getattr(importlib.import_module(module), name)
    if not callable(value):
        assert isinstance(value, str | int | float) or value.__doc__  # a constant, or a module
        return
    assert "__doc__" in vars(value) or inspect.isfunction(value)
    assert value.__doc__
    if inspect.isclass(value) and not issubclass(value, BaseException):
        silent = [
            method
            for owner in value.__mro__
            if owner.__module__.startswith("meshlib.")
            for method, function in vars(owner).items()
            if not method.startswith("_")
            and inspect.isfunction(function)
            and not inspect.getdoc(getattr(value, method))
        ]
        assert [] == silent


@pytest.mark.parametrize("module", PUBLIC)
def test_reference_has_a_heading_for_the_module(module):
    assert re.search(rf"^## `{re.escape(module)}`$", reference(), re.MULTILINE)


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[".".join(pair) for pair in NAMES])
def test_reference_names_everything_in_the_section_of_its_module(module, name):
    section = reference().partition(f"## `{module}`\n")[2].partition("\n## `")[0]
    assert re.search(rf"`(?:class |async with |with )?{name}\b", section), (
        f"{module}.{name} is missing in docs/reference/api.md"
    )


def test_reference_names_every_public_method_of_the_mesh():
    section = reference().partition("## `meshlib`\n")[2].partition("\n## `")[0]
    methods = {
        name
        for owner in meshlib.Mesh.__mro__
        for name, value in vars(owner).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod))
    }
    # The engine's own: what the control thread and the fork hooks call.
    methods -= {"publish", "tick", "changed", "before_fork", "after_fork_in_parent", "after_fork_in_child", "not_ready"}
    assert set() == {name for name in methods if not re.search(rf"`(?:Mesh|mesh)\.{name}\b", section)}
