"""The command line: main.py dispatches, arguments.py parses, each verb has its own file."""
