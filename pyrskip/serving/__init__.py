"""HTTP services of exports: `serve` answers questions, `gateway` decides for requests on their way to another
server."""
