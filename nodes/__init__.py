"""The graph's face: the only room that imports ComfyUI."""
from comfy_api.latest import ComfyExtension, io

from .adapters import LoomAdapterStack, LoomLoadAdapter
from .apply import LoomApplyAdapters
from .bake import LoomBakeCheckpoint
from .base import LoomBaseModel
from .captions import LoomCaptionDataset
from .check import LoomCheckDataset
from .compare import LoomCompare
from .compare_methods import LoomCompareMethods
from .dataset import LoomCaptionUse, LoomCombineDatasets, LoomDatasetFromFolder, LoomResolution
from .extract import LoomExtractAdapter
from .finetune import LoomFineTune
from .inspect import LoomInspectAdapter, LoomSaveAdapter
from .merge import LoomMergeAdapters, LoomResizeAdapter
from .options import LoomNetwork, LoomObjective, LoomOptimizer, LoomSampling
from .paths import register_folders
from .routes import add_routes
from .run_options import LoomCheckpointing, LoomHardware
from .text_options import LoomNewWord, LoomPrior, LoomTextEncoder
from .textual_inversion import LoomTrainTextualInversion
from .train import LoomTrainLoRA


class LoRALoom(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes, in the order of the work."""
        return [
            LoomDatasetFromFolder,
            LoomResolution,
            LoomCaptionUse,
            LoomCombineDatasets,
            LoomCaptionDataset,
            LoomCheckDataset,
            LoomBaseModel,
            LoomSampling,
            LoomOptimizer,
            LoomObjective,
            LoomNetwork,
            LoomTextEncoder,
            LoomNewWord,
            LoomPrior,
            LoomCheckpointing,
            LoomHardware,
            LoomTrainLoRA,
            LoomTrainTextualInversion,
            LoomFineTune,
            LoomLoadAdapter,
            LoomAdapterStack,
            LoomApplyAdapters,
            LoomMergeAdapters,
            LoomResizeAdapter,
            LoomExtractAdapter,
            LoomBakeCheckpoint,
            LoomInspectAdapter,
            LoomCompare,
            LoomCompareMethods,
            LoomSaveAdapter,
        ]


async def comfy_entrypoint() -> LoRALoom:
    """What ComfyUI calls once at its start."""
    register_folders()
    add_routes()
    return LoRALoom()
