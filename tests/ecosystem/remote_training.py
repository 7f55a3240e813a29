# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What somebody without leanformers trains; run by test_trainer.py.

    python remote_training.py CLEAN_PROCESS.py AUTO_CLASS FOLDER OUTPUT MAX_STEPS [CHECKPOINT]

Loads the folder, with a checkpoint that one, trains on it to MAX_STEPS steps in all with transformers' own Trainer,
and saves a checkpoint after every second one.
"""

import importlib.util
import sys

clean_process_file, auto_class, folder, output, max_steps, *checkpoint = sys.argv[1:]
spec = importlib.util.spec_from_file_location("clean_process", clean_process_file)
clean_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean_process)
sys.meta_path.insert(0, clean_process.LeanformersIsNotInstalled)
sys.addaudithook(clean_process.refuse_network)

import torch  # noqa: E402  after what refuses leanformers
import transformers  # noqa: E402

torch.set_num_threads(1)
load = getattr(transformers, auto_class).from_pretrained
model = load(checkpoint[0] if checkpoint else folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers"), type(model).__module__
generator = torch.Generator().manual_seed(0)
ids = torch.randint(4, model.config.vocab_size, (24, 6), generator=generator).tolist()
arguments = transformers.TrainingArguments(
    output,
    max_steps=int(max_steps),
    save_steps=2,
    per_device_train_batch_size=4,
    learning_rate=1e-3,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = transformers.Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
trainer.train(resume_from_checkpoint=checkpoint[0] if checkpoint else None)
trainer.save_model()
