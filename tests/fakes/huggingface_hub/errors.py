"""The errors that are asked for by name."""


class HfHubHTTPError(OSError):
    pass


class LocalEntryNotFoundError(OSError):
    pass
