// Real Workload API clients: go-spiffe's sources, through rotations.
//
//	clients mtls  SOCKET ID ROTATIONS   X509Source on both ends of mutual TLS, a new connection every 50 ms until the
//	                                    identity has changed that often; any failed handshake fails
//	clients jwt   SOCKET ID AUDIENCE    JWTSource: fetch, validate by bundle, validate by the agent
//	clients federated SOCKET ID ROTATIONS SOCKET ID   the same between two trust domains: the client is the first; then
//	                                    a token of the client is validated by the bundles of the other
//	clients none  SOCKET                must be refused with PermissionDenied "no identity issued"
//	clients bundles SOCKET TD           FetchX509Bundles and FetchJWTBundles
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func main() {
	if len(os.Args) < 3 {
		fatal(errors.New("usage: clients mtls|jwt|federated|none|bundles|watch|first|once|time|server|client|broker SOCKET …"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	addr := workloadapi.WithAddr("unix:" + os.Args[2])
	var err error
	switch os.Args[1] {
	case "mtls":
		n, _ := strconv.Atoi(os.Args[4])
		id := spiffeid.RequireFromString(os.Args[3])
		err = mtls(ctx, addr, id, addr, id, n)
	case "federated":
		n, _ := strconv.Atoi(os.Args[4])
		id, other := spiffeid.RequireFromString(os.Args[3]), spiffeid.RequireFromString(os.Args[6])
		otherAddr := workloadapi.WithAddr("unix:" + os.Args[5])
		if err = mtls(ctx, addr, id, otherAddr, other, n); err == nil {
			err = foreignJWT(ctx, addr, id, otherAddr)
		}
	case "jwt":
		err = jwt(ctx, addr, spiffeid.RequireFromString(os.Args[3]), os.Args[4])
	case "none":
		err = none(ctx, addr)
	case "bundles":
		err = bundles(ctx, addr, spiffeid.RequireTrustDomainFromString(os.Args[3]))
	case "watch":
		err = watch(context.Background(), addr)
	case "first":
		err = first(context.Background(), addr)
	case "once":
		err = once(ctx, addr)
	case "time":
		n, _ := strconv.Atoi(os.Args[3])
		err = measure(ctx, addr, n)
	case "server":
		err = server(context.Background(), addr, os.Args[3], spiffeid.RequireTrustDomainFromString(os.Args[4]))
	case "client":
		n, _ := strconv.Atoi(os.Args[5])
		err = client(ctx, addr, os.Args[3], spiffeid.RequireFromString(os.Args[4]), n)
	case "broker":
		err = askBroker(ctx, addr, os.Args[3:])
	default:
		err = fmt.Errorf("no such mode: %s", os.Args[1])
	}
	if err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "FAILED:", err)
	os.Exit(1)
}

func serve(l net.Listener, failed *atomic.Int64) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			line, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				failed.Add(1)
				fmt.Fprintln(os.Stderr, "server side:", err)
				return
			}
			fmt.Fprint(c, line)
		}()
	}
}

func call(addr string, conf *tls.Config) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, conf)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprintln(c, "hello")
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && line != "hello\n" {
		err = fmt.Errorf("echo is %q", line)
	}
	return err
}

// The client's agent and identity, the server's agent and identity.
func mtls(ctx context.Context, addr workloadapi.ClientOption, id spiffeid.ID, serverAddr workloadapi.ClientOption, serverID spiffeid.ID,
	rotations int) error {
	server, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(serverAddr))
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(addr))
	if err != nil {
		return err
	}
	defer client.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(server, server, tlsconfig.AuthorizeID(id)))
	if err != nil {
		return err
	}
	defer l.Close()
	var failed atomic.Int64
	go serve(l, &failed)
	conf := tlsconfig.MTLSClientConfig(client, client, tlsconfig.AuthorizeID(serverID))
	serial, seen, calls := "", -1, 0
	for seen < rotations {
		if err := call(l.Addr().String(), conf); err != nil {
			return fmt.Errorf("handshake %d after %d rotations: %w", calls, seen, err)
		}
		calls++
		svid, err := client.GetX509SVID()
		if err != nil {
			return err
		}
		if s := svid.Certificates[0].SerialNumber.String(); s != serial {
			serial = s
			seen++
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("only %d rotations in time", seen)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if failed.Load() > 0 {
		return fmt.Errorf("%d connections failed on the server's side", failed.Load())
	}
	fmt.Printf("%d handshakes, %d rotations, 0 failed\n", calls, seen)
	return nil
}

func jwt(ctx context.Context, addr workloadapi.ClientOption, id spiffeid.ID, audience string) error {
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(addr))
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience, Subject: id})
	if err != nil {
		return err
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{audience}); err != nil {
		return fmt.Errorf("by the bundle: %w", err)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{"somebody-else"}); err == nil {
		return errors.New("a wrong audience was accepted")
	}
	c, err := workloadapi.New(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	back, err := c.ValidateJWTSVID(ctx, svid.Marshal(), audience)
	if err != nil {
		return fmt.Errorf("by the agent: %w", err)
	}
	if back.ID != id {
		return fmt.Errorf("the agent says %s", back.ID)
	}
	if _, err := c.ValidateJWTSVID(ctx, svid.Marshal(), "somebody-else"); status.Code(err) != codes.InvalidArgument {
		return fmt.Errorf("wrong audience at the agent: %v", err)
	}
	fmt.Println("token for", svid.ID, "expires", svid.Expiry.Format(time.RFC3339))
	return nil
}

// A token of one trust domain under the bundles that a workload of the other one has.
func foreignJWT(ctx context.Context, addr workloadapi.ClientOption, id spiffeid.ID, otherAddr workloadapi.ClientOption) error {
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(addr))
	if err != nil {
		return err
	}
	defer source.Close()
	other, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(otherAddr))
	if err != nil {
		return err
	}
	defer other.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "them", Subject: id})
	if err != nil {
		return err
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), other, []string{"them"}); err != nil {
		return fmt.Errorf("token by the other's bundles: %w", err)
	}
	fmt.Println("token of", id, "validated in the other trust domain")
	return nil
}

func none(ctx context.Context, addr workloadapi.ClientOption) error {
	c, err := workloadapi.New(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.FetchX509Context(ctx)
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no identity issued") {
		return fmt.Errorf("expected PermissionDenied \"no identity issued\", got %v", err)
	}
	fmt.Println("refused:", status.Convert(err).Message())
	return nil
}

func bundles(ctx context.Context, addr workloadapi.ClientOption, td spiffeid.TrustDomain) error {
	c, err := workloadapi.New(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	x, err := c.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	xb, err := x.GetX509BundleForTrustDomain(td)
	if err != nil {
		return err
	}
	j, err := c.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	jb, err := j.GetJWTBundleForTrustDomain(td)
	if err != nil {
		return err
	}
	if len(xb.X509Authorities()) == 0 || len(jb.JWTAuthorities()) == 0 {
		return errors.New("empty bundle")
	}
	fmt.Println(len(xb.X509Authorities()), "roots,", len(jb.JWTAuthorities()), "JWT keys")
	return nil
}
