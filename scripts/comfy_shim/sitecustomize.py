"""Lets ComfyUI start where torchvision does not fit torch and where torchaudio is missing.

PyPI's torchvision for Linux is compiled against CUDA. Beside a CPU torch its compiled half cannot be loaded. It puts up
with that, but then registers shape functions for two operators that do not exist now, and `import torchvision` dies
with "operator torchvision::nms does not exist". ComfyUI and transformers import torchvision only for resizing and the
like, so it is enough that those two names exist; calling them still fails.

torchaudio is a requirement of ComfyUI, and newer ones do not start without it, but nothing here makes a sound, and its
versions are bound to torch's. Where it is not installed there is a stand-in: it can be imported, and using it fails.

Python runs a file of this name at start-up when its folder is on PYTHONPATH. Nothing is imported then: torch has to
wait until ComfyUI has set the environment variables that choose the device and the allocator.
"""

import importlib.abc
import importlib.machinery
import sys


class DefineMissingOperators(importlib.abc.MetaPathFinder):
    """Finds no module; it is asked for every one, which tells when torchvision is about to register."""

    def find_spec(self, fullname, path, target=None):
        if fullname == "torchvision._meta_registrations" and not sys.modules["torchvision.extension"]._has_ops():
            import torch

            # A library takes its definitions with it when it is collected, hence the attribute.
            self.library = torch.library.Library("torchvision", "DEF")
            # The only two that torchvision does not guard with _has_ops() itself.
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, DefineMissingOperators())


class StandInForTorchaudio(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchaudio and its modules; the last to be asked, and so only where it is not installed."""

    def find_spec(self, fullname, path, target=None):
        if fullname.split(".")[0] == "torchaudio":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module):
        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)

            def fail(*args, **kwargs):
                raise ModuleNotFoundError(f"{module.__name__}.{name} is used, and torchaudio is not installed")

            return fail

        module.__getattr__ = attribute


sys.meta_path.append(StandInForTorchaudio())
