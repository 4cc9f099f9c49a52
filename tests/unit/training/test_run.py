from __future__ import annotations

from attempt_ray.training.run import execute


def test_a_target_run_leaves_report_prompt_and_attention(make_config):
    config = make_config()
    events = []
    result = execute(config, on_progress=events.append)
    print(result.report)
    print([e for e in events])
    import os
    print(sorted(os.listdir(result.directory)))
