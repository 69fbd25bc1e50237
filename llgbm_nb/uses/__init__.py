"""What deltas are good for: nearest adapters, duplicates, several adapters at once, an adapter for a task, training
targets.

An extra: the main job does without.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "nearest": ["fingerprints", "near_duplicates", "nearest_to"],
    "together": ["additivity", "additivity_text", "applied_together", "merge_cosines", "merge_or_reason",
                 "merge_text", "pick_to_merge"],
    "task_query": ["accuracy_text", "domain_of_query", "find_queries", "is_of_use", "query_accuracy", "query_cosines",
                   "query_deltas", "task_adapter"],
    "finetune": ["find_data_files", "read_pairs", "train_lora", "train_teachers"],
    "answers": ["write_answers"],
    "task_search": ["answers_table", "answers_text", "gains_by_adapter", "search", "search_each", "search_text"],
    "students": ["HeldOut", "pick_teachers", "try_students"],
    "figures": ["additivity_figure", "merge_figure", "query_figure", "search_figure", "students_figure",
                "students_text"],
})  # fmt: skip
