import os, sys, time, tempfile
from pathlib import Path
import served
from benchmarks import machine
from benchmarks.changes import Changes, prepare
from benchmarks.load import Load, Options
served.BRAIN=[sys.executable, "/tmp/obs3.py"]
with machine.database(cores="1") as url:
    prepare(url, 100000)
    os.environ["BENCHMARK_PAUSES"]=tempfile.mktemp()
    for _ in range(3):
      with machine.brain(url, cores="0") as brain:
        print("connected", time.time()%1000)
        with Load(Options(brain.port,"/ws",10000,window=10000),cores="1") as load:
            print("all", time.time()%1000); time.sleep(1)
            with Changes(url,100000,cores="1") as ch:
                ch.start(500,100); ch.finish(60)
            print("again", time.time()%1000)
            load.ask("again")
            print("end", time.time()%1000)
            time.sleep(1)
        print("\n".join(l[:900] for l in brain.log().splitlines() if "BIG" in l))
