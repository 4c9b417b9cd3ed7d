#!/usr/bin/env bash
# transformers 5.24.0, accelerate 1.15.0, torch 2.14.1 (CPU, Python 3.11).
# save_pretrained writes the names of an older form for networks whose modules were renamed in transformers 5 (ViT, DeiT, BEiT,
# DINOv2, Swin, ...), and from_pretrained renames them back. Trainer.train(resume_from_checkpoint=...) does not: it loads the
# file with strict=False and logs a warning, so that the blocks keep the weights the new process has drawn. Training goes on,
# and ends with exit code 0 (transformers' issues 43701 and 48805). With save_original_format=False in save_pretrained the
# names are the module's own.
# Tensors that are not the checkpoint's after resuming at the checkpoint's last step, so that no step changes them:
#   ViT   32 of 40
#   BERT   0 of 41
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.14.1 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

transformers.logging.set_verbosity_error()
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}


def vit(seed):
    torch.manual_seed(seed)
    return ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=4))


def bert(seed):
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**SIZES, vocab_size=50))


class Samples(torch.utils.data.Dataset):
    def __init__(self, is_text):
        self.is_text = is_text

    def __len__(self):
        return 16

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        if self.is_text:
            return {"input_ids": torch.randint(50, (8,), generator=draw), "labels": i % 3}
        return {"pixel_values": torch.randn(3, 16, 16, generator=draw), "labels": i % 3}


def train(name, model, resume=None):
    arguments = TrainingArguments(
        name, max_steps=4, save_steps=4, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=Samples(name == "BERT")).train(resume_from_checkpoint=resume)
    return model.state_dict()


found = {}
for name, build in {"ViT": vit, "BERT": bert}.items():
    whole = train(name, build(0))
    again = train(name, build(1), f"{name}/checkpoint-4")
    found[name] = (sum(not torch.equal(whole[key], again[key]) for key in whole), len(whole))
print("transformers", transformers.__version__, "torch", torch.__version__)
for name, (other, count) in found.items():
    print(f"{name:5} {other} of {count}")
assert found["ViT"][0] == 32 and found["BERT"][0] == 0
PYTHON
