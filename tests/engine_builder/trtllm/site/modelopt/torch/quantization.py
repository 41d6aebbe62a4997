"""Of nvidia-modelopt the one recipe that the builder asks for by name."""

NVFP4_MLP_ONLY_CFG = "NVFP4_MLP_ONLY_CFG"
