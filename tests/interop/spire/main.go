// The unmodified SPIRE agent, from its own published module.
package main

import (
	"context"
	"os"

	"github.com/spiffe/spire/cmd/spire-agent/cli"
)

func main() {
	os.Exit(new(cli.CLI).Run(context.Background(), os.Args[1:]))
}
