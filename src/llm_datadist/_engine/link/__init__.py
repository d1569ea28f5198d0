"""The data plane of one link: lanes, channel, the peer's directory, messages of the engines."""
