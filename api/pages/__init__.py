"""Pages for people: server-rendered, live by server-sent events, readable without JavaScript."""
