"""S3 as a protocol: pure functions and tables; knows neither the store nor sockets nor the time."""
