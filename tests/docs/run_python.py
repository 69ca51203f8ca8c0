"""Run a Python block of the documents: `python -m tests.docs.run_python FILE SECONDS`.

A block may await outside of a function, as in `python -m asyncio`, and may go on for ever: it is
ended once each of its lines has run. Each line must, unless the block ends by itself.
"""

import ast
import asyncio
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from codes(each)


async def main(path: str, source: str, seconds: float) -> None:
    code = compile(source, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    missing = {line for each in codes(code) for *_, line in each.co_lines() if line}

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != path:
            return None
        missing.discard(frame.f_lineno)
        return trace

    sys.settrace(trace)
    work = eval(code, {"__name__": "__main__"})
    if not inspect.isawaitable(work):
        return
    task = asyncio.ensure_future(work)
    deadline = asyncio.get_running_loop().time() + seconds
    while missing and not task.done():
        if asyncio.get_running_loop().time() > deadline:
            lines = source.splitlines()
            raise TimeoutError(f"never ran: {[lines[each - 1] for each in sorted(missing)]}")
        await asyncio.wait({task}, timeout=0.05)
    if not task.done():
        task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[1]).read_text(), float(sys.argv[2])))
