from __future__ import annotations

import json
from pathlib import Path

import pytest

from attempt_ray.bank.places import open_storage
from attempt_ray.training.run import Event, execute


def test_e2e(make_config, s3, tmp_path):
    import time
    c = make_config(tasks=["rte"], runs=s3, data={"cache_dir": str(tmp_path / "cache")})
    t=time.time(); local = execute(make_config()); print("local", time.time()-t)
    t=time.time(); r = execute(c); print("s3", time.time()-t, r.directory)
    storage = open_storage(s3)
    def walk(p):
        for e in storage.entries(p):
            q = f"{p}/{e.name}".lstrip("/")
            print(q, e)
            if e.kind == "directory": walk(q)
    walk("")
    a, b = dict(local.report), dict(r.report)
    a.pop("seconds"); b.pop("seconds"); assert a == b
    print([str(p) for p in (tmp_path/"cache").rglob("*")])
    assert execute(c).report == r.report
