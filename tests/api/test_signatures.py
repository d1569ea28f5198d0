"""The public surface against the stored manifest (api.md checklist 1, 3, 5)."""

import importlib
import inspect
import json
import pickle
import pkgutil
import traceback
from pathlib import Path

import pytest

import llm_datadist
from llm_datadist import layouts

MANIFEST = json.loads(Path(__file__).with_name("manifest.json").read_text())
CLASSES = MANIFEST["classes"]
METHODS = [
    (name, method, parameters)
    for name, entry in CLASSES.items()
    for method, parameters in entry.get("methods", {}).items()
]
ATTRIBUTES = [
    (name, attribute)
    for name, entry in CLASSES.items()
    for attribute in entry.get("attributes", [])
]
ENUMERATIONS = {
    "DataType",
    "LLMRole",
    "LLMStatusCode",
    "Memtype",
    "Placement",
    "RegisterMemStatus",
}
SAME_CLASS = {"KvCache": "Cache", "LlmConfig": "LLMConfig"}


def shown(signature):
    """Return a signature's parameters in the manifest's form."""
    texts, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            if not any(text.startswith("*") for text in texts):
                texts.append("*")
        prefix = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        keyword_only = keyword_only or prefix == "*"
        assert parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
        has_default = parameter.default is not inspect.Parameter.empty
        default = f"={_text(parameter.default)}" if has_default else ""
        texts.append(f"{prefix}{parameter.name}{default}")
    return texts


def _text(default):
    return str(default) if type(default).__module__.startswith("llm_datadist") else repr(default)


def test_all_has_exactly_the_names_of_the_api():
    """api.md checklist 1."""
    assert sorted(llm_datadist.__all__) == sorted(MANIFEST["all"])
    assert len(set(llm_datadist.__all__)) == len(llm_datadist.__all__)


@pytest.mark.parametrize("name", MANIFEST["all"])
def test_a_public_name_can_be_imported(name):
    """api.md checklist 1."""
    assert inspect.isclass(getattr(llm_datadist, name))


def test_a_star_import_gives_all():
    """api.md checklist 1."""
    names = {}
    exec("from llm_datadist import *", names)
    assert set(MANIFEST["all"]) <= set(names)


@pytest.mark.parametrize("name", MANIFEST["all"])
def test_a_public_class_is_named_by_where_it_is_imported_from(name):
    """In tracebacks, help and pickles: not the private module that defines it."""
    kind = getattr(llm_datadist, name)
    assert kind.__module__ == "llm_datadist"
    assert pickle.loads(pickle.dumps(kind)) is kind


def test_names_of_other_public_modules_are_named_by_a_public_module():
    private = {}
    for info in pkgutil.walk_packages(llm_datadist.__path__, "llm_datadist."):
        if "._" in info.name or ".vllm." in info.name:
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", []):
            found = inspect.getattr_static(module, name, None)
            if "._" in str(getattr(found, "__module__", "")):
                private[f"{info.name}.{name}"] = found.__module__
    assert private == {}


def test_a_layout_can_be_pickled():
    layout = layouts.dense(
        "NHD", layers=range(2), kv_heads=4, heads=range(4), head_size=64,
        data_type=llm_datadist.DataType.DT_BF16, block_tokens=16,
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(layout)) == layout


def test_a_traceback_names_the_public_exception():
    error = llm_datadist.LLMException("text")
    assert traceback.format_exception_only(error) == ["llm_datadist.LLMException: text\n"]


def test_a_call_with_wrong_arguments_names_the_public_class():
    with pytest.raises(TypeError, match=r"^CacheManager\.pull_cache\(\) takes from"):
        llm_datadist.CacheManager.pull_cache(*range(9))


def test_other_names_are_the_same_class():
    """api.md checklist 1."""
    for name, target in SAME_CLASS.items():
        assert getattr(llm_datadist, name) is getattr(llm_datadist, target)


def test_v2_list_names_the_cache_manager_generation():
    """api.md checklist 1."""
    first = {"KvCache", "KvCacheManager", "Tensor", "TensorDesc"}
    assert set(llm_datadist.v2_list) == set(MANIFEST["all"]) - first


def test_an_unknown_attribute_is_an_attribute_error():
    """api.md checklist 1."""
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = llm_datadist.NoSuchName
    with pytest.raises(ImportError):
        from llm_datadist import NoSuchName  # noqa: F401


@pytest.mark.parametrize(("module", "names"), MANIFEST["modules"].items())
def test_a_module_re_exports_the_same_objects(module, names):
    """api.md checklist 3."""
    imported = importlib.import_module(module)
    assert set(names) <= set(imported.__all__)
    for name in imported.__all__:
        assert getattr(imported, name) is getattr(llm_datadist, name)


def test_the_manifest_describes_every_public_class():
    described = set(CLASSES) | ENUMERATIONS | set(SAME_CLASS)
    assert described == set(MANIFEST["all"])


@pytest.mark.parametrize("name", [name for name, entry in CLASSES.items() if "signature" in entry])
def test_a_constructor_has_the_documented_signature(name):
    """api.md checklist 5."""
    signature = inspect.signature(getattr(llm_datadist, name))
    assert shown(signature) == CLASSES[name]["signature"]


@pytest.mark.parametrize(("name", "method", "parameters"), METHODS)
def test_a_method_has_the_documented_signature(name, method, parameters):
    """api.md checklist 5."""
    function = inspect.getattr_static(getattr(llm_datadist, name), method)
    is_bound_to_class = isinstance(function, (classmethod, staticmethod))
    signature = inspect.signature(getattr(getattr(llm_datadist, name), method))
    assert shown(signature) == ([] if is_bound_to_class else ["self"]) + parameters
    kind = SAME_CLASS.get(name, name)
    assert getattr(getattr(llm_datadist, name), method).__qualname__ == f"{kind}.{method}"


@pytest.mark.parametrize(("name", "attribute"), ATTRIBUTES)
def test_an_attribute_exists_and_is_no_method(name, attribute):
    """api.md checklist 1."""
    found = inspect.getattr_static(getattr(llm_datadist, name), attribute, None)
    assert not inspect.isroutine(found)
    assert attribute in dir(getattr(llm_datadist, name))


@pytest.mark.parametrize("name", [name for name in MANIFEST["all"] if name not in ENUMERATIONS])
def test_everything_public_is_documented(name):
    kind = getattr(llm_datadist, name)
    assert kind.__doc__
    own = [base for base in kind.__mro__ if base.__module__.startswith("llm_datadist")]
    for member, value in (item for base in own for item in vars(base).items()):
        if not member.startswith("_") and member != "llm_engine_instance":
            assert inspect.getdoc(value), f"{name}.{member}"
