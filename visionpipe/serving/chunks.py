"""Finds the end of a chunked body (RFC 9112, section 7.1), so that the parser gets no byte of the next request."""


class Chunks:
    """Follows the declared lengths of the chunks. The parser checks whether the chunks are well-formed."""

    def __init__(self) -> None:
        self._left = 0  # remaining bytes of the present chunk and its line end
        self._line = b""  # beginning of an incomplete line
        self._last = False  # the last chunk has ended, and trailer lines follow, up to an empty one

    def end(self, data: bytes | bytearray) -> int:
        """Returns how many bytes of `data`, which follows the data of earlier calls, belong to the body."""
        position = 0
        while position < len(data):
            if self._left:
                step = min(self._left, len(data) - position)
                self._left -= step
                position += step
                continue
            stop = data.find(b"\n", position) + 1
            self._line += data[position : stop or len(data)]
            if not stop:
                break
            line, self._line, position = self._line.strip(b"\r\n"), b"", stop
            if self._last:
                if not line:
                    return position
            else:
                length = chunk_length(line)
                self._left, self._last = length + 2 if length else 0, not length
        return len(data)


def chunk_length(line: bytes) -> int:
    """Reads a chunk's length, in bytes, from its first line; returns 0 for a line that the parser will reject."""
    try:
        return max(0, int(line.partition(b";")[0], 16))
    except ValueError:
        return 0
