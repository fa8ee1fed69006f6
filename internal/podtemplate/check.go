// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"text/template/parse"
)

// The functions that the checker plants. Users cannot name them: they are on no
// allow-list.
const (
	stepName  = "_step"
	rangeName = "_range"
)

// parseTree parses without knowing the functions: the checker refuses unknown
// ones with a better message.
func parseTree(text string) (tree *parse.Tree, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it does not parse: %v", p)
		}
	}()
	tree = parse.New(treeName)
	tree.Mode = parse.SkipFuncCheck
	trees := map[string]*parse.Tree{}
	if tree, err = tree.Parse(text, "", "", trees); err != nil {
		return nil, err
	}
	for _, other := range trees {
		if other != tree {
			return nil, errors.New("define and block are not offered; give each text a key of its own")
		}
	}
	return tree, nil
}

// checker walks a parse tree once: it refuses what is not offered and plants
// the calls that make loops pay.
type checker struct {
	text    string
	varCost int // looking a variable up is linear in the variables declared
	used    map[string]*function
	err     *Error
}

func (c *checker) check(tree *parse.Tree) *Error {
	c.varCost = 1 + strings.Count(c.text, ":=")/8
	c.list(tree.Root, 0)
	return c.err
}

func (c *checker) refuse(at parse.Node, format string, args ...any) {
	if c.err == nil {
		line := 1 + strings.Count(c.text[:at.Position()], "\n")
		c.err = &Error{Line: line, Kind: KindParse, Msg: oneLine(fmt.Sprintf(format, args...))}
	}
}

func (c *checker) list(list *parse.ListNode, depth int) (cost int) {
	if list == nil {
		return 0
	}
	for _, node := range list.Nodes {
		if c.err != nil {
			return 0
		}
		cost += c.statement(node, depth)
	}
	return cost
}

// statement returns how many steps it takes to run the node once, its loops
// excepted.
func (c *checker) statement(node parse.Node, depth int) int {
	switch n := node.(type) {
	case *parse.TextNode, *parse.BreakNode, *parse.ContinueNode:
		return 1
	case *parse.ActionNode:
		return 1 + c.pipe(n.Pipe, depth)
	case *parse.IfNode:
		return c.branch(&n.BranchNode, depth)
	case *parse.WithNode:
		return c.branch(&n.BranchNode, depth)
	case *parse.RangeNode:
		cost := c.branch(&n.BranchNode, depth)
		c.meterRange(n, cost)
		return cost
	case *parse.TemplateNode:
		c.refuse(n, "template and block are not offered; give each text a key of its own")
	default:
		c.refuse(n, "%s is not offered here; remove it", n)
	}
	return 0
}

func (c *checker) branch(n *parse.BranchNode, depth int) int {
	if depth == maxNesting {
		c.refuse(n, "it is nested more than %d deep; nest less", maxNesting)
		return 0
	}
	return 1 + c.pipe(n.Pipe, depth) + c.list(n.List, depth+1) + c.list(n.ElseList, elseDepth(n, depth))
}

// elseDepth does not count a chain of else if as nesting.
func elseDepth(n *parse.BranchNode, depth int) int {
	if n.ElseList != nil && len(n.ElseList.Nodes) == 1 && n.ElseList.Nodes[0].Type() == n.NodeType && n.NodeType != parse.NodeRange {
		return depth
	}
	return depth + 1
}

func (c *checker) pipe(pipe *parse.PipeNode, depth int) (cost int) {
	if depth > maxNesting {
		c.refuse(pipe, "its parentheses are nested more than %d deep; use variables", maxNesting)
	}
	if c.err != nil {
		return 0
	}
	for _, cmd := range pipe.Cmds {
		for _, arg := range cmd.Args {
			cost += c.expression(arg, depth)
		}
	}
	return cost + len(pipe.Decl)*c.varCost
}

func (c *checker) expression(node parse.Node, depth int) int {
	switch n := node.(type) {
	case *parse.PipeNode:
		return 1 + c.pipe(n, depth+1)
	case *parse.ChainNode:
		return len(n.Field) + c.expression(n.Node, depth+1)
	case *parse.FieldNode:
		return len(n.Ident)
	case *parse.VariableNode:
		return len(n.Ident) + c.varCost
	case *parse.IdentifierNode:
		f, ok := byName[n.Ident]
		if !ok {
			c.refuse(n, "function %q is not offered; use one of the documented functions", n.Ident)
			return 0
		}
		c.used[f.name] = f
	}
	return 1
}

// meterRange rewrites {{range PIPE}}BODY{{end}} to
// {{range PIPE | _range}}{{if _step COST}}{{end}}BODY{{end}}: every iteration
// pays for its body, empty or not, and text/template's sorting of a map is paid
// for as well.
func (c *checker) meterRange(n *parse.RangeNode, cost int) {
	if c.err != nil {
		return
	}
	c.used[rangeName] = &function{name: rangeName}
	n.Pipe.Cmds = append(n.Pipe.Cmds, call(n.Pos, rangeName))
	cmd := call(n.Pos, stepName, &parse.NumberNode{
		NodeType: parse.NodeNumber, Pos: n.Pos, IsInt: true, Int64: int64(cost), Text: fmt.Sprint(cost),
	})
	step := &parse.IfNode{BranchNode: parse.BranchNode{
		NodeType: parse.NodeIf, Pos: n.Pos, Line: n.Line,
		Pipe: &parse.PipeNode{NodeType: parse.NodePipe, Pos: n.Pos, Line: n.Line, Cmds: []*parse.CommandNode{cmd}},
		List: &parse.ListNode{NodeType: parse.NodeList, Pos: n.Pos},
	}}
	n.List.Nodes = append([]parse.Node{step}, n.List.Nodes...)
}

func call(pos parse.Pos, name string, args ...parse.Node) *parse.CommandNode {
	args = append([]parse.Node{parse.NewIdentifier(name).SetPos(pos)}, args...)
	return &parse.CommandNode{NodeType: parse.NodeCommand, Pos: pos, Args: args}
}

// enterRange passes on what a loop runs over. A map costs in advance:
// text/template copies and sorts its keys, even for a loop that ends at once.
func (r *run) enterRange(over any) (any, error) {
	v := reflect.ValueOf(over)
	if v.Kind() != reflect.Map {
		return over, r.onTime()
	}
	if err := r.step(v.Len()); err != nil {
		return nil, err
	}
	return over, r.spend(3 * entrySize * v.Len())
}
