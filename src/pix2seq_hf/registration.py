"""How transformers' Auto classes and pipelines learn of Pix2Seq without anything being imported before it is used.

`AutoConfig.register(...)` and its siblings want classes, and classes need torch: that would make `import pix2seq_hf`
five times slower than `import transformers`. The library's own models stand in tables of names, and are imported from
`transformers.models.<model_type>` when a checkpoint asks for them. This file writes the names of Pix2Seq into the same
tables, either now or right after the library imports the file that holds them."""

import importlib.abc
import sys
import types
from collections.abc import Callable

MODEL_TYPE = "pix2seq"
PACKAGE = __name__.rpartition(".")[0]

# file in transformers.models.auto -> table -> our entry
AUTO_TABLES = {
    "configuration_auto": {"CONFIG_MAPPING_NAMES": "Pix2SeqConfig"},
    "modeling_auto": {
        "MODEL_MAPPING_NAMES": "Pix2SeqModel",
        "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES": "Pix2SeqForObjectDetection",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "Pix2SeqForConditionalGeneration",
    },
    "image_processing_auto": {
        "IMAGE_PROCESSOR_MAPPING_NAMES": {"torchvision": "Pix2SeqImageProcessor", "pil": "Pix2SeqImageProcessorPil"}
    },
    "processing_auto": {"PROCESSOR_MAPPING_NAMES": "Pix2SeqProcessor"},
}
AUTO_PACKAGE = "transformers.models.auto"
PIPELINES = "transformers.pipelines"


class LazyAlias(types.ModuleType):
    """A module whose attributes are those of this package, so that the library finds our classes where its own are."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(sys.modules[PACKAGE], name)


class AfterImport(importlib.abc.MetaPathFinder):
    r"""Calls a function with a module right after the module was imported for the first time.

    Args:
        module_names (`set[str]`): Full names of the modules to wait for.
        action (`Callable[[types.ModuleType], None]`): What to do with each."""

    def __init__(self, module_names: set[str], action: Callable[[types.ModuleType], None]):
        self.module_names = module_names
        self.action = action

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.module_names:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_then_act(module):
                run(module)
                self.action(module)

            spec.loader.exec_module = run_then_act
        return spec


def add_names(module: types.ModuleType):
    r"""Write our entries into the tables of one of the files of `transformers.models.auto`.

    Args:
        module (`types.ModuleType`): An imported module named in [`AUTO_TABLES`]."""
    for table_name, entry in AUTO_TABLES[module.__name__.rpartition(".")[2]].items():
        table = getattr(module, table_name)
        table[MODEL_TYPE] = entry
        # A mapping that was built before the configuration had its name keeps an inverse of the old table.
        mapping = getattr(table, "_model_mapping", None)
        if mapping is not None:
            mapping._reverse_config_mapping[AUTO_TABLES["configuration_auto"]["CONFIG_MAPPING_NAMES"]] = MODEL_TYPE


def add_pipeline(module: types.ModuleType):
    r"""Make `pipeline("pix2seq")` known; its class is imported when it is asked for.

    Args:
        module (`types.ModuleType`): The imported `transformers.pipelines`."""
    module.PIPELINE_REGISTRY.supported_tasks[MODEL_TYPE] = {
        "impl": f"{PACKAGE}.pipelines.Pix2SeqPipeline",
        # The Auto class that [`AUTO_TABLES`] maps to the model with all tasks.
        "pt": (module.AutoModelForImageTextToText,),
        "type": "image",
    }


def register_auto_classes():
    """Make AutoConfig, AutoModel, AutoProcessor, their siblings and `pipeline` know Pix2Seq; imports nothing."""
    sys.modules.setdefault(f"transformers.models.{MODEL_TYPE}", LazyAlias(f"transformers.models.{MODEL_TYPE}"))
    actions = {f"{AUTO_PACKAGE}.{file_name}": add_names for file_name in AUTO_TABLES}
    actions[PIPELINES] = add_pipeline
    waiting = actions.keys() - sys.modules.keys()
    for full_name in actions.keys() - waiting:
        actions[full_name](sys.modules[full_name])
    if waiting:
        sys.meta_path.insert(0, AfterImport(waiting, lambda module: actions[module.__name__](module)))
