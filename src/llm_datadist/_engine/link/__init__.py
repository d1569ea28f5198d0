"""The data plane of a link, and the messages that two engines exchange."""
