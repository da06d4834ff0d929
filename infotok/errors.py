"""The one exception that users see: what was wrong, where, and what would be right."""


class InfotokError(Exception):
    """Bad input. Its message is one line that names the file, line or key and the remedy."""


class DamagedDataError(InfotokError):
    """Prepared data that are missing or damaged; they must be prepared again."""
