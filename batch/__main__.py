from batch.cli import main

if __name__ == "__main__":  # the engine's process imports this module again
    main()
