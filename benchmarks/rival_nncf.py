"""A checkpoint quantised by NNCF through optimum-intel: python rival_nncf.py CHECKPOINT FOLDER BITS GROUP sym|asym.

In an environment that has it, as ci/peers makes one. Data-free, every matrix of a layer in BITS, as `optimum-cli export openvino
--weight-format int4 --ratio 1.0` does it; a GROUP that does not divide a matrix is made smaller.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

source, folder, bits, group, kind = sys.argv[1:]
chosen = {"bits": int(bits), "sym": kind == "sym"}
if chosen["bits"] == 4:
    chosen |= {"group_size": int(group), "ratio": 1.0, "group_size_fallback": "adjust"}
config = OVWeightQuantizationConfig(**chosen)
OVModelForCausalLM.from_pretrained(source, export=True, quantization_config=config).save_pretrained(folder)
