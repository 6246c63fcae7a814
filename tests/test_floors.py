"""The house rules that a parser can check: imports only go down, and each tool stays in its room."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jaxad

PACKAGE = Path(jaxad.__file__).parent

# A module may import from lower floors only; the first pattern that matches counts. See docs/architecture.md.
FLOORS = {
    r"standardiser": -1,
    r"noise|coarse|denoisers(\..+)?|data(\..+)?|metrics(\..+)?|runtime(\.(cluster|compilation|distributed|files|sharding))?": 0,
    r"shipping(\.(bodies|bundle))?|reports": 0,
    r"detectors\.(scorer|search|layout)": 0.3,
    r"detectors\.(estimator|neighbours|copula|gaussian|views|windows)": 0.5,
    r"detectors\.evidence": 0.6,
    r"detectors\.completion": 0.6,
    r"detectors\.(trimming|series)": 0.7,
    r"denoising|detectors\.(appearance|conformal)": 1,
    r"closed_form": 1.5,
    r"training|sampling|runtime\.checkpoint": 2,
    r"scoring(\..+)?|runtime\.(runs|memory)": 3,
    r"generation(\..+)?": 3.5,
    r"detectors(\.(fitting|diffusion|diffusion_time|consensus|image|taught|persistence|explanation|faces|defects))?": 4,
    r"shipping\.(export|serve)|detectors\.catalogue": 5,
    r"evaluation(\..+)?": 6,
    r"reports\..+|shipping\.(bulk|reasons|watching)": 7,
    r"cli(\..+)?": 8,
    r"": 9,  # jaxad/__init__.py re-exports
}
# Here modules of one floor may import each other, as long as they do so without a cycle; elsewhere peers are strangers,
# except for the files of one folder.
FREE_WITHIN = {7}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
every_module = pytest.mark.parametrize("module", FILES)


def floor_of(module: str) -> float:
    for pattern, floor in FLOORS.items():
        if re.fullmatch(pattern, module):
            return floor
    raise AssertionError(
        f"jaxad.{module} stands on no floor: add it to FLOORS in {__file__} and to docs/architecture.md"
    )


def imported_by(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported, ``from a import b`` as ``a.b``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute in this house"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_imports(module: str) -> set[str]:
    """The modules of jaxad that ``module`` imports."""
    found = set()
    for name in imported_by(TREES[module]):
        if name.split(".")[0] != "jaxad":
            continue
        inside = name.removeprefix("jaxad").removeprefix(".")
        while inside not in FILES:
            inside = inside.rpartition(".")[0]
        found.add(inside)
    return found - {module}


@every_module
def test_every_module_stands_on_a_floor_and_imports_only_go_down(module):
    floor = floor_of(module)
    for imported in own_imports(module):
        below = floor_of(imported)
        siblings = module.split(".")[0] == imported.split(".")[0]
        assert below < floor or (below == floor and (siblings or floor in FREE_WITHIN)), (
            f"jaxad.{module} (floor {floor}) must not import jaxad.{imported} (floor {below})"
        )


def test_no_module_imports_itself_around_a_corner():
    # A package's __init__ re-exports its parts, which is no cycle as long as the parts do not import the package.
    try:
        TopologicalSorter({module: own_imports(module) for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_an_unknown_module_is_reported():
    with pytest.raises(AssertionError, match="stands on no floor: add it to FLOORS"):
        floor_of("utils")


# ------------------------------------------------------------------------------------------------------------- rooms for tools


def uses(module: str, dotted: str) -> bool:
    """Whether the module imports ``dotted`` or something in it, at any depth, or writes it out as an attribute."""
    imports = any(name == dotted or name.startswith(dotted + ".") for name in imported_by(TREES[module]))
    return imports or any(
        isinstance(node, ast.Attribute) and ast.unparse(node) == dotted for node in ast.walk(TREES[module])
    )


@pytest.mark.parametrize(
    ("tool", "rooms"),
    [
        ("flax.linen", r"denoisers(\..+)?|denoising"),
        # `export` lowers a jitted program and `bundle` runs it: what is compiled there is not made of the library's functions.
        ("jax.jit", r"training|runtime\.compilation|detectors\.(estimator|fitting|defects)|shipping\.(export|bundle)"),
        ("jax.make_mesh", r"runtime\.sharding"),
        ("jax._src", r"runtime\.distributed"),
        ("jax.distributed", r"runtime\.distributed"),
        ("ray", r"runtime\.cluster"),
        ("matplotlib", r"reports\.figures"),
        ("tensorflow_datasets", r"data(\..+)?"),
        ("tensorflow", r""),
        ("pickle", r""),
        ("joblib", r""),
        ("torch", r""),
        ("starlette", r"shipping\.serve"),
        ("uvicorn", r"shipping\.serve"),
        ("prometheus_client", r"shipping\.serve"),
    ],
)
def test_a_tool_stays_in_its_room(tool, rooms):
    strays = [module for module in FILES if uses(module, tool) and not (rooms and re.fullmatch(rooms, module))]
    assert not strays, f"{tool} belongs in {rooms or 'no module'}, found in {strays}"


def run_on_import(tree: ast.AST):
    """Every import statement outside functions and outside ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not (
            isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        ):
            yield from run_on_import(child)


@pytest.mark.parametrize("tool", ["matplotlib", "tensorflow_datasets", "grain", "pyarrow", "ray", "tensorboardX"])
def test_a_heavy_or_optional_package_is_imported_inside_functions(tool):
    for module, tree in TREES.items():
        names = {name.split(".")[0] for node in run_on_import(tree) for name in imported_by(node)}
        assert tool not in names, f"jaxad.{module} imports {tool} as soon as it is imported itself"


def calls(module: str):
    return [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]


@every_module
def test_only_the_command_line_prints(module):
    prints = [node.lineno for node in calls(module) if ast.unparse(node.func) == "print"]
    assert module == "cli.terminal" or not prints, f"print in jaxad.{module}, lines {prints}"


@every_module
def test_no_fixed_seed_below_the_detectors(module):
    fixed = [
        node.lineno
        for node in calls(module)
        if ast.unparse(node.func).endswith(("random.key", "random.PRNGKey"))
        and all(isinstance(argument, ast.Constant) for argument in node.args)
    ]
    assert floor_of(module) >= 4 or not fixed, f"a fixed random key in jaxad.{module}, lines {fixed}"


@every_module
def test_no_exception_is_caught_without_its_name(module):
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ExceptHandler):
            caught = "everything" if node.type is None else ast.unparse(node.type)
            nameless = {"everything", "Exception", "BaseException"} & set(re.findall(r"\w+", caught))
            assert not nameless, f"jaxad.{module}, line {node.lineno} catches {caught}"


@every_module
def test_user_input_is_not_checked_by_assert(module):
    asserts = [node.lineno for node in ast.walk(TREES[module]) if isinstance(node, ast.Assert)]
    assert not asserts, f"assert in jaxad.{module}, lines {asserts}: raise a ValueError that says what was expected"
