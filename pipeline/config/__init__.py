"""A run as one YAML and one frozen object. An unknown key is an error, and all violations are told at once."""

from __future__ import annotations

from pipeline.config.cluster import (
    ClaimConfig,
    ClusterConfig,
    KubernetesConfig,
    SlurmConfig,
    TlsConfig,
    TolerationConfig,
)
from pipeline.config.problems import violations
from pipeline.config.reading import TOLD, as_parameters, content_of_yaml, read_config, read_content, validated
from pipeline.config.run import (
    ComputeConfig,
    LogConfig,
    MemberConfig,
    ModelConfig,
    NormalizeConfig,
    OutputConfig,
    ReadingConfig,
    RunConfig,
    TilesConfig,
    device_fits_cluster,
)
from pipeline.config.section import Auto, Axes, Location, Positive, Section, Voxels, Whole

__all__ = [
    "TOLD",
    "Auto",
    "Axes",
    "ClaimConfig",
    "ClusterConfig",
    "ComputeConfig",
    "KubernetesConfig",
    "Location",
    "LogConfig",
    "MemberConfig",
    "ModelConfig",
    "NormalizeConfig",
    "OutputConfig",
    "Positive",
    "ReadingConfig",
    "RunConfig",
    "Section",
    "SlurmConfig",
    "TilesConfig",
    "TlsConfig",
    "TolerationConfig",
    "Voxels",
    "Whole",
    "as_parameters",
    "content_of_yaml",
    "device_fits_cluster",
    "read_config",
    "read_content",
    "validated",
    "violations",
]
