# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What somebody without leanformers trains; run by test_trainer.py.

    python remote_training.py CLEAN_PROCESS.py FOLDER OUTPUT [CHECKPOINTS]

FOLDER holds models, each in a folder of its own beside `auto_class.txt`. Each is trained for four steps with
transformers' own Trainer, with a checkpoint after every second one, or goes on from the checkpoint of its name.
"""

import importlib.util
import sys
import traceback
from pathlib import Path

clean_process_file, folder, output, *checkpoints = sys.argv[1:]
spec = importlib.util.spec_from_file_location("clean_process", clean_process_file)
clean_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean_process)
sys.meta_path.insert(0, clean_process.LeanformersIsNotInstalled)
sys.addaudithook(clean_process.refuse_network)

import torch  # noqa: E402  after what refuses leanformers
import transformers  # noqa: E402

torch.set_num_threads(1)
SETTINGS = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True}


def train(source: Path, auto_class: str, run: Path, checkpoint: Path | None) -> None:
    model = getattr(transformers, auto_class).from_pretrained(checkpoint or source, trust_remote_code=True)
    ids = torch.randint(4, model.config.vocab_size, (24, 6), generator=torch.Generator().manual_seed(0)).tolist()
    settings = transformers.TrainingArguments(str(run), report_to="none", disable_tqdm=True, **SETTINGS)
    trainer = transformers.Trainer(model, settings, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()


for source in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
    run = Path(output, source.name)
    run.mkdir(parents=True)
    checkpoint = Path(checkpoints[0], source.name, "checkpoint-2") if checkpoints else None
    try:
        train(source, (source / "auto_class.txt").read_text(), run, checkpoint)
    except Exception:
        (run / "error.txt").write_text(traceback.format_exc())
