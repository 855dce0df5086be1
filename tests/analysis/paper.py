"""The settings of the paper (section 2, and the LoRA of its baseline), which the counted tables belong to."""

from steermoe import config

PAPER_STEERING = config.Steering.model_validate(
    {
        "num_experts": 8, "router": "shared", "groups": None, "stages": None, "layers": "all",
        "post_encoder": False, "hook_point": "output", "scale": "learned", "scale_init": 0.1, "vector_std": 0.01,
        "temperature": 1.0, "top_k": None, "gate_dropout": 0.0, "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0,
    }
)  # fmt: skip
PAPER_LORA = config.Lora.model_validate(
    {
        "rank": 8, "alpha": 16, "dropout": 0.0,
        "targets": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    }
)  # fmt: skip
PAPER_PROJECTOR = config.Projector.model_validate(
    {
        "downsample": "average", "downsample_factor": 4, "downsample_after_layer": None, "projection": "linear", "width": None,
        "heads": None, "experts": None,
    }
)  # fmt: skip
