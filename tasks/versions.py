"""The version of each stage: raise it by hand when what the stage computes changes meaning, and say why.

A table of its own, without imports, so that a plan is made without loading Prefect, Ray or an engine.
"""

STAGE_VERSIONS: dict[str, int] = {
    "tasks.dataset:load_problems": 2,
    "tasks.dataset:select_prompts": 1,
    "tasks.dataset:replace_equal_groups": 1,
    "tasks.dataset:tokenize_solutions": 1,
    "tasks.rollout:sample_responses": 1,
    "tasks.verify:verify_responses": 3,
    "tasks.verify:verify_refinements": 3,
    "tasks.critique:write_critiques": 2,
    "tasks.refine:sample_refinements": 2,
    "tasks.select:select_refinements": 1,
    "tasks.advantage:build_training_samples": 1,
    "tasks.distil:build_distillation_samples": 1,
    "tasks.supervised:imitate_solutions": 1,
    "tasks.supervised:imitate_completions": 1,
    "tasks.supervised:imitate_critiques": 1,
    "tasks.update:init_policy": 1,
    # 2: on the CPU gradients are added up in one order, whatever the threads do. 3: attention pack by pack, oneDNN
    "tasks.update:update_policy": 3,
    "tasks.update:save_checkpoint": 1,
    "tasks.evaluate:load_benchmark": 1,
    "tasks.evaluate:evaluate_policy": 4,  # 4: accuracy is over judged answers; results name benchmark and template
    "tasks.evaluate:summarise_benchmark": 1,
}
