"""A client of /ws: it reconnects after any drop, resumes where it was, and reports what it missed.

    from brain import Away, Connected, Message, wait, watch

    runs = {}
    async for event in watch("ws://localhost:5221/ws", snapshot=True, agent="agent-1"):
        match event:
            case Connected(reset=True):
                runs.clear()  # discard the local data: the current state follows
            case Message(data=run):
                runs[run.id] = run
            case Away(reason=reason):
                print("the data shown may be out of date:", reason)

    run = await wait("ws://localhost:5221/ws", "run-1")

client.md has the same for a browser, protocol.md the rules that both follow.
"""
