"""config.yaml and the environment -> frozen, typed values. Nothing outside this package reads either."""

from briton.config.briton_section import BritonSection, GuidedDecodingSection, LocalSection, LoggingSection
from briton.config.checkpoint import CheckpointRepository
from briton.config.config import Config
from briton.config.enums import CheckpointSource, TrussTRTLLMBatchSchedulerPolicy, TrussTRTLLMQuantizationType
from briton.config.environment import Environment, load_environment
from briton.config.loader import load_config

__all__ = [
    "BritonSection",
    "CheckpointRepository",
    "CheckpointSource",
    "Config",
    "Environment",
    "GuidedDecodingSection",
    "LocalSection",
    "LoggingSection",
    "TrussTRTLLMBatchSchedulerPolicy",
    "TrussTRTLLMQuantizationType",
    "load_config",
    "load_environment",
]
