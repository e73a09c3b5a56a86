"""Seconds and peak memory of TRL's GRPOTrainer on the shape that `cargo bench --bench grpo` runs.

Run: PYTHON .bench/grpo_step.py TOKENIZER_DIR [PROMPTS SAMPLES TOKENS STEPS BETA MICRO]
"""
import resource
import sys
import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

if not torch.cuda.is_available():
    torch.cuda.is_current_stream_capturing = lambda: False

tokenizer_dir = sys.argv[1]
prompts, samples, tokens, steps = (int(a) for a in (sys.argv[2:6] + ["16", "8", "128", "1"][len(sys.argv[2:6]):]))
beta = float(sys.argv[6]) if len(sys.argv) > 6 else 0.04
micro = int(sys.argv[7]) if len(sys.argv) > 7 else 8
torch.manual_seed(0)
torch.set_num_threads(2)
config = Qwen2Config(
    hidden_size=512, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=2, intermediate_size=1408,
    vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=4096,
)
model = Qwen2ForCausalLM(config)
with tempfile.TemporaryDirectory() as folder:
    # TRL loads the reference from the model's own path
    model.save_pretrained(folder + "/model")
    del model
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder + "/model")
    model = Qwen2ForCausalLM.from_pretrained(folder + "/model", dtype=torch.float32)
    text = "What is the sum of the first numbers that are divisible by seven and end in three, if there are " * 8
    ids = tokenizer(text)["input_ids"][:64]
    rows = Dataset.from_dict({"prompt": [tokenizer.decode(ids[:-2]) + f" {n}" for n in range(prompts * steps)]})
    spent = {"reward": 0}
    stamps = []

    def reward(completions, **_):
        stamps.append(time.time())
        return [float(len(c) % 7) for c in completions]

    args = GRPOConfig(
        output_dir=folder + "/out", use_cpu=True, bf16=False, fp16=False, per_device_train_batch_size=micro,
        gradient_accumulation_steps=prompts * samples // micro, num_generations=samples, max_completion_length=tokens,
        beta=beta, max_steps=steps, learning_rate=1e-6, save_strategy="no", report_to=[], gradient_checkpointing=False,
        generation_kwargs={"min_new_tokens": tokens}, disable_tqdm=True, logging_steps=1,
    )
    trainer = GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=rows, processing_class=tokenizer)
    begin = time.time()
    trainer.train()
    total = time.time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"trl: {prompts} x {samples} x {tokens}, beta {beta}, micro-batch {micro}: {total / steps:.1f} s a step "
          f"(rollout of the first {stamps[0] - begin:.1f} s), peak {peak:.2f} GiB")
