// What runs in a pod that has no code of ours.
//
//	clients watch  SOCKET               prints a line for each identity that arrives and each error, with the time in milliseconds
//	                                    since 1970; does not end
//	clients first  SOCKET               connects again and again until an identity is there, and prints a line as above; then sleeps
//	clients once   SOCKET               the same, but one try, and the end
//	clients time   SOCKET N             N new connections, each until its identity is there: milliseconds, one a line
//	clients server SOCKET ADDRESS TD    echoes lines to any member of the trust domain, by mutual TLS; does not end
//	clients client SOCKET ADDRESS ID N  N new connections to a server that must have that ID; any failed one fails
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

func say(format string, args ...any) {
	fmt.Printf("%d %s\n", time.Now().UnixMilli(), fmt.Sprintf(format, args...))
}

type watcher struct{}

func (watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	for _, svid := range c.SVIDs {
		roots := 0
		if b, ok := c.Bundles.Get(svid.ID.TrustDomain()); ok {
			roots = len(b.X509Authorities())
		}
		say("identity %s serial %x roots %d", svid.ID, svid.Certificates[0].SerialNumber, roots)
	}
}

func (watcher) OnX509ContextWatchError(err error) {
	say("error %s %s", status.Code(err), status.Convert(err).Message())
}

func watch(ctx context.Context, addr workloadapi.ClientOption) error {
	c, err := workloadapi.New(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.WatchX509Context(ctx, watcher{})
}

func first(ctx context.Context, addr workloadapi.ClientOption) error {
	c, err := workloadapi.New(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	start := time.Now()
	for tries := 1; ; tries++ {
		x, err := c.FetchX509Context(ctx)
		if err == nil {
			say("identity %s after %.1f ms and %d tries", x.DefaultSVID().ID, float64(time.Since(start).Microseconds())/1000, tries)
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	<-ctx.Done()
	return nil
}

func once(ctx context.Context, addr workloadapi.ClientOption) error {
	x, err := workloadapi.FetchX509Context(ctx, addr)
	if err == nil {
		watcher{}.OnX509ContextUpdate(x)
	}
	return err
}

func measure(ctx context.Context, addr workloadapi.ClientOption, n int) error {
	for i := 0; i < n; i++ {
		start := time.Now()
		if _, err := workloadapi.FetchX509Context(ctx, addr); err != nil {
			return err
		}
		fmt.Printf("%.2f\n", float64(time.Since(start).Microseconds())/1000)
	}
	return nil
}

func server(ctx context.Context, addr workloadapi.ClientOption, listen string, td spiffeid.TrustDomain) error {
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(addr))
	if err != nil {
		return err
	}
	defer source.Close()
	l, err := tls.Listen("tcp", listen, tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeMemberOf(td)))
	if err != nil {
		return err
	}
	defer l.Close()
	say("listening on %s", l.Addr())
	var failed atomic.Int64
	serve(l, &failed)
	return nil
}

func client(ctx context.Context, addr workloadapi.ClientOption, where string, id spiffeid.ID, n int) error {
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(addr))
	if err != nil {
		return err
	}
	defer source.Close()
	conf := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id))
	for i := 0; i < n; i++ {
		if err := call(where, conf); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	fmt.Println(n, "handshakes, 0 failed")
	return nil
}
