"""A large phantom CT and a folder of an nnU-Net model with random weights; runs inside the environment of nnU-Net.

    python nnunet_random.py '{"shape": [512, 512, 600], ...}' IMAGES MODEL

nnunet.py calls it. What a prediction takes in time and memory does not depend on what the weights are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

_CONFIGURATION = "3d_fullres"
_RESAMPLE = "resample_data_or_seg_to_shape"


def write_phantom(folder: Path, shape: list[int], spacing: list[float]) -> None:
    """An ellipse of soft tissue with noise in air, int16 HU."""
    columns, rows, slices = shape
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    rng = np.random.default_rng(0)
    voxels = np.full((slices, rows, columns), -1000, dtype=np.int16)
    for plane in voxels:
        plane[body] = rng.normal(40, 20, int(body.sum())).astype(np.int16)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing([float(edge) for edge in spacing])
    SimpleITK.WriteImage(image, str(folder / "phantom_0000.nii"))


def make_plan(wanted: dict[str, Any]) -> dict[str, Any]:
    """A plan as nnU-Net's planner writes it, for a plain U-Net of this size."""
    features, patch = wanted["features"], wanted["patch"]
    stages = len(features)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": features,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    resampling = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [float(n) for n in reversed(wanted["shape"])],
        "spacing": list(reversed(wanted["target_spacing"])),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": _RESAMPLE,
        "resampling_fn_seg": _RESAMPLE,
        "resampling_fn_probabilities": _RESAMPLE,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "architecture": architecture,
        "batch_dice": True,
    }
    intensities = {"max": 1500.0, "mean": 40.0, "median": 40.0, "min": -1000.0}
    intensities |= {"percentile_00_5": -100.0, "percentile_99_5": 300.0, "std": 60.0}
    return {
        "dataset_name": "Dataset902_Phantom",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(reversed(wanted["spacing"])),
        "original_median_shape_after_transp": list(reversed(wanted["shape"])),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {_CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }


def write_model(folder: Path, wanted: dict[str, Any]) -> None:
    """The folder that nnU-Net predicts from."""
    labels = {"background": 0, **{f"organ{n}": n for n in range(1, wanted["classes"] + 1)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii"}
    plan = make_plan(wanted)
    architecture = plan["configurations"][_CONFIGURATION]["architecture"]
    torch.manual_seed(0)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        len(labels),
        deep_supervision=False,
    )
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": _CONFIGURATION},
        "inference_allowed_mirroring_axes": None,
    }
    (folder / "fold_all").mkdir(parents=True)
    torch.save(checkpoint, folder / "fold_all" / "checkpoint_final.pth")
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps(plan))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    write_phantom(Path(sys.argv[2]), asked["shape"], asked["spacing"])
    write_model(Path(sys.argv[3]), asked)
